"""How much memory a process has needed."""

import resource
from pathlib import Path


def peak_mib() -> float:
    """Of resident memory since the program began, or since it was last forgotten.

    `getrusage` does not forget: a child has its parent's peak from its first moment on.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
