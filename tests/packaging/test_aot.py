"""Ahead-of-time compilation of GPU kernels, without a GPU."""

import json
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from bridle_exporters.aot import main


@pytest.mark.parametrize("arch", [80, 90])
def test_compiles_without_spills(arch: int, capsys: Any) -> None:
    main(["--arch", str(arch)])
    row = json.loads(capsys.readouterr().out)
    assert row["name"] == "guide_step_blend" and row["arch"] == arch
    assert 16 <= row["registers"] <= 128 and row["spills"] == 0 and row["cubin_bytes"] > 1000
