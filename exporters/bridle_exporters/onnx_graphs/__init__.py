"""Bridle's networks as ONNX graphs: the network functions run over an `Ops` that writes nodes."""
