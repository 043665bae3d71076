"""The networks, written once: functions over (ops, weights, configuration, inputs) that touch tensors only through ops."""
