"""Seconds and peak memory of an export of random SD 1.5-size weights, in a process of its own.

    python benchmarks/onnx_export.py --arch sd15 --precision fp32

Memory is counted above that of the process before it loads anything, beside the bytes of the weights.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cpu.machine import machine
from cpu.memory import peak_mib

RESULTS = Path(__file__).parent / "results" / "onnx_export.json"


def measure(model: str, out: str, precision: str) -> None:
    """Prints a JSON line. Runs in a process of its own."""
    from bridle_exporters.onnx_graphs import folder

    base = peak_mib()
    start = time.perf_counter()
    folder.export(model, out, precision=precision, features=["residuals", "regions", "maps"])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": round(seconds, 1), "peak_mib": round(peak_mib() - base), "base_mib": round(base)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="sd15")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure, given.precision)
        return
    from bridle.new_model import write_new_model

    place = Path(tempfile.mkdtemp(prefix="onnx-export-"))
    try:
        write_new_model(given.arch, place / "model", progress=True)
        weights = sum(path.stat().st_size for path in (place / "model").rglob("*.safetensors"))
        command = [sys.executable, __file__, "--precision", given.precision, "--measure", str(place / "model")]
        found = subprocess.run([*command, str(place / "out")], check=True, capture_output=True, text=True)
        row = {"arch": given.arch, "precision": given.precision, "weights_mib": weights >> 20}
        row |= json.loads(found.stdout.splitlines()[-1])
        row["ratio"] = round(row["peak_mib"] / row["weights_mib"], 3)
        row |= machine(threads=os.cpu_count() or 1, rounds=1)
        rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        rows = [r for r in rows if (r["arch"], r["precision"]) != (given.arch, given.precision)]
        RESULTS.write_text(json.dumps([*rows, row], indent=2) + "\n")
        print(json.dumps(row))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
