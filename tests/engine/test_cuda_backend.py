"""`backend="cuda"` on a machine without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from control_cases import write_small

import bridle
from bridle.backends.cuda import CudaBackend
from bridle.backends.reference import ReferenceBackend
from bridle.backends.static_rows import Description, Evaluation, StaticRows
from bridle.rows import KV, ContextPiece, ContextSegment, Rows, SiteTerms
from bridle_kernels.attention import Capture

HERE = Path(__file__).parent


def test_pipelines_in_the_interpreter_are_the_reference(tmp_path: Path) -> None:
    """One step of most controls; two of windows; two with guidance, known regions, regions of their own, and pixels."""
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    write_small(tmp_path / "model")
    outcome = subprocess.run(
        [sys.executable, "interpreted_cuda.py", str(tmp_path / "model")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    found = json.loads(outcome.stdout)
    assert len(found["distances"]) == 4 and found["maps"], found
    assert max([*found["distances"].values(), *found["maps"].values()]) <= 1e-4, found
    norm, launched = {"_slices", "_merge", "_normalise"}, found["launched"]
    assert norm | {"_forward"} <= set(launched["encoder"]) & set(launched["decoder"]) & set(launched["step"]), launched
    own, of_reference = found["concatenations"]
    assert own == 0 and of_reference > 0, "the decoder reads its skips where they are; the reference copies them"


def test_it_runs_on_cuda_devices_only() -> None:
    assert "not on cpu" in str(CudaBackend.runs_on(torch.device("cpu"), torch.float16))
    assert CudaBackend.runs_on(torch.device("cuda:1"), torch.float16) is None
    assert "float64" in str(CudaBackend.runs_on(torch.device("cuda"), torch.float64))


def rows(weight: float | torch.Tensor = 0.5, length: int = 3, tokens: int = 4, scale: float = 1.0) -> Rows:
    kv = KV(torch.randn(2, tokens, 1, 8), torch.randn(2, tokens, 1, 8))
    piece = ContextPiece((kv,), torch.full((2,), length, dtype=torch.int32))
    capture = Capture(torch.tensor([[0]]), torch.ones(2, 9, 1), scale=scale)
    sites = (SiteTerms(weight, capture=capture), SiteTerms(capture=capture))
    segments = (ContextSegment((piece,)), ContextSegment((piece,), sites=sites))
    return Rows(torch.randn(2, 4, 3, 3), torch.randn(2, 8), segments)


def described(given: Rows) -> Description:
    return Description(Evaluation(given))


def test_values_are_data_and_shapes_are_not() -> None:
    first = described(rows()).key
    assert first == described(rows(weight=0.9, length=1, scale=2.0)).key == described(rows(weight=torch.rand(2))).key
    assert first != described(rows(tokens=5)).key
    assert first != described(rows(weight=torch.rand(2, 9))).key
    apart = rows()
    other = ContextPiece(rows().context[0].pieces[0].sites, apart.context[0].pieces[0].length)
    unshared = Rows(
        apart.sample, apart.time, (apart.context[0], ContextSegment((other,), sites=apart.context[1].sites))
    )
    assert first != described(unshared).key, "keys that two segments share have one place"


def test_a_program_reads_new_values_and_hands_out_what_it_wrote() -> None:
    one, two = rows(), rows(weight=0.25)
    static = StaticRows(Evaluation(one), described(one))
    mine = static.evaluation.rows
    kept = mine.context[0].pieces[0].sites[0].k
    assert kept is mine.context[1].pieces[0].sites[0].k and kept is not one.context[0].pieces[0].sites[0].k
    for given in (one, two):
        static.bind(described(given))
        assert torch.equal(kept, given.context[0].pieces[0].sites[0].k)
        assert torch.equal(mine.sample, given.sample)
        before = mine.context[1].sites[0].capture.out
        assert torch.equal(before, given.context[1].sites[0].capture.out)
        before += 1.0
        also = mine.context[1].sites[1].capture.out
        also += 2.0
        static.hand_out(described(given))
        assert (given.context[1].sites[0].capture.out == 4.0).all(), "two sites add to one buffer"
    two.sample.mul_(2.0)
    static.bind(described(two))
    assert torch.equal(mine.sample, two.sample), "changed in place"


def test_auto_passes_it_over_without_a_gpu(folder: Path) -> None:
    engine = bridle.load(folder)
    assert torch.cuda.is_available() or (
        isinstance(engine.backend, ReferenceBackend) and not isinstance(engine.backend, CudaBackend)
    )
