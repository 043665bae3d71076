"""What the backend `ort` is made of: graph files from outside checked, sessions, and rows as inputs of graphs."""
