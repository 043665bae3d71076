"""Runs the checks of one module and prints how many passed: `python run_gpu_checks.py gpu_norm_checks cpu`."""

import importlib
import os
import sys
import traceback
from pathlib import Path

sys.path += [str(Path(__file__).parents[1])]


def main(module: str, device: str) -> None:
    """Exits with 1 after naming every check that failed."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        importlib.import_module("bfloat16_interpreter").install()
    passed, failed = 0, []
    for name, check in importlib.import_module(module).checks(device):
        try:
            check()
            passed += 1
        except Exception:
            failed.append(name)
            traceback.print_exc(limit=-3)
            print("failed:", name, file=sys.stderr, flush=True)
    print(passed, "passed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
