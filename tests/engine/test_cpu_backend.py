"""`backend="cpu"`: every control gives what the reference backend gives, in any mixture of one batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from control_cases import CONTROLS, asked, distance
from runs import latents, picture, rel_l2, request

import bridle
from bridle.backends import programs
from bridle.backends.cpu import CpuBackend
from bridle.errors import RequestError, UnsupportedError
from bridle.rows import Branch
from bridle_kernels import active_isa, available_isas
from bridle_kernels.attention import Segment
from bridle_kernels.recorder import NotRecordableError, ProgramFrame

CLOSE = 1e-4


@pytest.fixture(scope="module")
def native(map_folder: Path) -> bridle.Engine:
    engine = bridle.load(map_folder, backend="cpu")
    assert isinstance(engine.backend, CpuBackend)
    return engine


@pytest.fixture(scope="module")
def of_the_reference(map_folder: Path) -> list[bridle.Result]:
    """Every control."""
    return bridle.load(map_folder, backend="reference").sample([asked(change) for change in CONTROLS.values()])


@pytest.mark.parametrize("isa", sorted({"scalar", "avx2", "avx512"} & set(available_isas())))
def test_every_control_is_the_reference(
    isa: str, map_folder: Path, of_the_reference: list[bridle.Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every variant that float32 has."""
    monkeypatch.setenv("BRIDLE_FORCE_ISA", isa)
    engine = bridle.load(map_folder, backend="cpu")
    assert active_isa() == isa
    ours = engine.sample([asked(change) for change in CONTROLS.values()])
    for name, one, other in zip(CONTROLS, ours, of_the_reference, strict=True):
        assert distance(one, other) <= CLOSE, name
        for word, heat in other.maps.items():
            assert abs(one.maps[word] - heat).max() <= CLOSE, (name, word)


def test_a_row_does_not_know_its_batch(native: bridle.Engine) -> None:
    """Bit for bit: the sums of every kernel have an order of their own."""
    together = native.sample([request(seed=seed) for seed in (1, 2, 3)])
    assert torch.equal(torch.as_tensor(together[1].latents), torch.as_tensor(run_plain(native, 2).latents))


def run_plain(engine: bridle.Engine, seed: int) -> bridle.Result:
    result = engine.sample(request(seed=seed))
    assert isinstance(result, bridle.Result)
    return result


def test_whole_runs_in_both_dtypes(folder: Path) -> None:
    wanted = latents(bridle.load(folder, backend="reference"))
    assert rel_l2(latents(bridle.load(folder, backend="cpu")), wanted) <= CLOSE
    if CpuBackend.suits(torch.bfloat16):
        narrow = rel_l2(latents(bridle.load(folder, backend="cpu", dtype="bfloat16")), wanted)
        torch_narrow = rel_l2(latents(bridle.load(folder, backend="reference", dtype="bfloat16")), wanted)
        assert narrow <= 1.25 * torch_narrow


def test_bfloat16_without_products_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And "auto" takes another backend."""
    for isa in {"avx2", "avx512"} & set(available_isas()):
        monkeypatch.setenv("BRIDLE_FORCE_ISA", isa)
        with pytest.raises(UnsupportedError, match=rf"this CPU \({isa}\) has no instructions for products in bfloat16"):
            bridle.load(folder, backend="cpu", dtype="bfloat16")
        assert bridle.load(folder, dtype="bfloat16").backend.name == "reference"
        assert CpuBackend.runs_on(torch.device("cpu"), torch.float32) is None


def test_what_it_cannot_run_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="float32 or bfloat16, not in float16"):
        bridle.load(folder, backend="cpu", dtype="float16")
    assert "not on cuda" in str(CpuBackend.runs_on(torch.device("cuda"), torch.float32))
    names = {dtype: bridle.load(folder, dtype=dtype).backend.name for dtype in ("float16", "float32")}
    assert names == {"float16": "reference", "float32": "cpu" if CpuBackend.suits(torch.float32) else "reference"}


def test_what_stays_the_same_is_bound_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text's keys and values are the same in every step; with a map edit whose strength moves they are not."""
    bound: list[str] = []
    bind = ProgramFrame.bind_segments

    def counting(frame: ProgramFrame, name: str, segments: Sequence[Segment]) -> None:
        bound.append(name)
        bind(frame, name, segments)

    monkeypatch.setattr(ProgramFrame, "bind_segments", counting)
    engine = bridle.load(folder, backend="cpu")
    latents(engine, num_inference_steps=4)
    assert bound and len(bound) == len(set(bound))
    bound.clear()
    latents(engine, num_inference_steps=4, attention=[bridle.CaptureMaps("cat")], prompt="a cat")
    assert len(bound) == 4 * len(set(bound))


def test_other_numbers_record_nothing(map_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strength, guidance, schedule, length of it and prompt are data; another size is another plan."""
    recorded: list[str] = []

    def counting(name: str) -> None:
        record = getattr(programs, name)
        monkeypatch.setattr(programs, name, lambda *given: recorded.append(name) or record(*given))

    counting("record_unet")
    counting("record_controlnet")
    engine = bridle.load(map_folder, backend="cpu")
    given: dict[str, Any] = {"num_inference_steps": 3, "width": 64, "height": 64}
    control = bridle.ControlNet("controlnet", picture(1, 64, 64), scale=0.5)
    latents(engine, **given, controls=[control])
    assert recorded == ["record_unet", "record_controlnet"]
    other = {**given, "num_inference_steps": 4, "guidance_scale": 3.0, "prompt": "a blue star on a hill", "seed": 9}
    latents(engine, **other, scheduler="dpm++ 2m", controls=[replace(control, scale=0.9, start=0.3)])
    assert recorded == ["record_unet", "record_controlnet"]
    latents(engine, **{**given, "width": 72}, controls=[replace(control, image=picture(1, 72, 64))])
    assert recorded == ["record_unet", "record_controlnet"] * 2


def test_a_controlnet_runs_where_it_is_used(map_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and steps that it adds nothing to cost nothing."""
    rows: list[int] = []
    branch_residuals = CpuBackend._branch

    def counting(backend: CpuBackend, branch: Branch, *given: Any) -> Any:
        rows.append(len(branch.rows))
        return branch_residuals(backend, branch, *given)

    monkeypatch.setattr(CpuBackend, "_branch", counting)
    engine = bridle.load(map_folder, backend="cpu")
    control = bridle.ControlNet("controlnet", picture(1, 64, 64), start=0.5)
    small: dict[str, Any] = {"num_inference_steps": 4, "width": 64, "height": 64}
    engine.sample([request(**small, controls=[control]), request(**small), request(**small)])
    assert rows == [2, 2]
    rows.clear()
    engine.sample([request(**small, controls=[replace(control, start=0.0)])] * 2)
    assert rows == [4] * 4


def test_a_network_that_cannot_be_recorded_runs_op_by_op(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = bridle.load(folder, backend="cpu")
    wanted = latents(engine)

    def refuse(*_: object) -> None:
        raise NotRecordableError("nothing can be recorded")

    monkeypatch.setattr(programs, "record_unet", refuse)
    monkeypatch.setattr(programs, "record_network", refuse)
    other = bridle.load(folder, backend="cpu")
    assert torch.equal(latents(other), wanted)
    plain, recorded = (e.sample(request()) for e in (other, engine))
    assert isinstance(plain, bridle.Result) and isinstance(recorded, bridle.Result)
    assert (plain.images == recorded.images).all()


def test_pinning_is_asked_for_by_one_or_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = latents(bridle.load(folder, backend="cpu"))
    monkeypatch.setenv("BRIDLE_PIN_THREADS", "1")
    assert torch.equal(latents(bridle.load(folder, backend="cpu")), wanted)
    monkeypatch.setenv("BRIDLE_PIN_THREADS", "all")
    with pytest.raises(RequestError, match="BRIDLE_PIN_THREADS"):
        bridle.load(folder, backend="cpu")
