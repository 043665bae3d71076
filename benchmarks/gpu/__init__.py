"""Parts of `gpu_check.py`: each runs in a process of its own and writes one JSON line per thing that it found."""
