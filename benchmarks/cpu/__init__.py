"""What `cpu_networks.py` is made of: workloads and systems, a process for each, gates, rounds, report and plot."""
