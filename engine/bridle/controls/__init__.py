"""One file per control system: each lowers its part of a request to primitives of the row plans."""
