"""Graph files from outside, checked before ONNX Runtime sees them."""
