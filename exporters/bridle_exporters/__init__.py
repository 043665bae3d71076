"""Forms in which a model leaves Bridle: GPU kernels compiled ahead of time."""
