"""A budget of device memory: what it adds up, what it moves elsewhere, what it refuses; the device is played by the CPU."""

import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from control_cases import CONTROLS, asked
from fake_cuda import PlainCuda
from runs import picture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bridle
from bridle.backends.memory_budget import Elsewhere, Load, MemoryBudget, decode_elements, row_elements
from bridle.backends.reference import ReferenceBackend
from bridle.request_checks import prepare
from bridle.request_loads import loads
from bridle.weights import Model, load_model

CPU = torch.device("cpu")
REQUEST = replace(asked(CONTROLS["ControlNet"]), output_type="np", num_inference_steps=2)


@pytest.fixture(scope="module")
def model(map_folder: Path) -> Model:
    return load_model(map_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def plenty(model: Model, map_folder: Path) -> bridle.Engine:
    return bridle.Engine(PlainCuda(model, CPU, torch.float32), map_folder)


def everything(model: Model) -> int:
    """Bytes of all weights."""
    parts = (model.unet, model.vae, *model.text_encoders)
    return sum(tensor.nbytes for part in parts for tensor in part.tensors.values())


def roomy(model: Model) -> int:
    """Enough for the model, a ControlNet and a pair of rows with it."""
    width = 4 * max(2 * row_elements(model.unet.config, model.unet.config.sample_size, 1), 0)
    return 2 * everything(model) + max(
        width, 4 * decode_elements(model.vae.config, model.unet.config.sample_size, False)
    )


def frugal(model: Model) -> int:
    """Just enough for one row, if what can wait does."""
    least = 1
    while True:
        try:
            MemoryBudget(least, CPU, 4).place_model(model)
            return least
        except bridle.MemoryBudgetError as problem:
            assert problem.need > least
            least = problem.need


def engine(model: Model, folder: Path, budget: int) -> bridle.Engine:
    return bridle.Engine(PlainCuda(model, CPU, torch.float32, memory_budget=budget), folder)


def test_all_stays_where_there_is_room(model: Model, map_folder: Path, plenty: bridle.Engine) -> None:
    ours = engine(model, map_folder, roomy(model))
    result = ours.sample(REQUEST)
    assert not any(
        isinstance(c.tensors, Elsewhere) for c in (ours.backend.model.unet, *ours.backend.model.text_encoders)
    )
    assert not isinstance(ours.control(REQUEST.controls[0]).tensors, Elsewhere)
    assert torch.equal(result.latents, plenty.sample(REQUEST).latents)


def test_what_can_wait_waits_and_the_image_is_the_same(model: Model, map_folder: Path, plenty: bridle.Engine) -> None:
    ours = engine(model, map_folder, frugal(model) * 13 // 10)
    backend = ours.backend
    unet = backend.model.unet.tensors
    assert isinstance(unet, Elsewhere) and all(isinstance(e.tensors, Elsewhere) for e in backend.model.text_encoders)
    assert backend._budget.resident < everything(model)
    small = replace(REQUEST, width=32, height=32)
    result = ours.sample(small)
    assert isinstance(ours.control(REQUEST.controls[0]).tensors, Elsewhere), "streamed"
    assert torch.equal(result.latents, plenty.sample(small).latents)


def test_refusals_say_what_is_needed_before_anything_begins(
    model: Model, map_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(bridle.MemoryBudgetError) as caught:
        engine(model, map_folder, 1000)
    assert caught.value.budget == 1000 and caught.value.need > 1000 and str(caught.value.need) in str(caught.value)
    ours = engine(model, map_folder, frugal(model))
    monkeypatch.setattr(ours.backend, "run_network", lambda *a: pytest.fail("a network ran"))
    many = [replace(asked(), seed=seed, width=512, height=512) for seed in range(8)]
    with pytest.raises(bridle.MemoryBudgetError, match=r"16 rows of latents 64x64 with 0 ControlNets need \d+ bytes"):
        ours.sample(many)
    exactly = engine(model, map_folder, caught.value.need)
    assert exactly.backend._budget.limit == caught.value.need


@pytest.mark.parametrize("budget", [0, -1, 1.5, True, "8GB"])
def test_a_budget_is_a_number_of_bytes(map_folder: Path, budget: object) -> None:
    with pytest.raises(bridle.RequestError) as caught:
        bridle.load(map_folder, memory_budget=budget)
    assert caught.value.field == "memory_budget"


def test_backends_without_memory_of_their_own_refuse_one(map_folder: Path) -> None:
    with pytest.raises(bridle.UnsupportedError, match="memory_budget"):
        bridle.load(map_folder, backend="reference", memory_budget=2**30)


@pytest.mark.parametrize("which", ["encode_image", "decode_image"])
def test_large_images_take_tiles(model: Model, map_folder: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    asked_for: list[bool] = []
    whole = getattr(ReferenceBackend, which)
    monkeypatch.setattr(ReferenceBackend, which, lambda s, x, t: asked_for.append(t) or whole(s, x, t))
    budget = engine(model, map_folder, roomy(model)).backend._budget
    ours = engine(model, map_folder, budget.resident + 4 * decode_elements(model.vae.config, (12, 12), False))
    channels, scale = (4, 1) if which == "decode_image" else (3, model.vae.config.scale)
    for side in (8, 12, 13):
        getattr(ours.backend, which)(torch.zeros(1, channels, scale * side, scale * side), False)
    assert asked_for == [False, False, True]


def test_batches_are_counted_as_their_programs_are_padded(model: Model, map_folder: Path) -> None:
    ours = engine(model, map_folder, 2**40)
    budget, size = ours.backend._budget, (64, 64)
    enough = budget.need(model, Load(12, size, tiled=True))
    assert budget.need(model, Load(9, size, tiled=True)) < enough
    budget.limit = enough
    ours.backend.admit(9, size, 0)
    budget.limit = enough - 1
    with pytest.raises(
        bridle.MemoryBudgetError, match=rf"12 rows of latents 64x64 with 0 ControlNets need {enough} bytes"
    ):
        ours.backend.admit(9, size, 0)


@pytest.mark.parametrize("name", ["ImagePrompt", "T2IAdapter"])
def test_other_controls_are_counted_and_wait_too(
    model: Model, map_folder: Path, plenty: bridle.Engine, name: str
) -> None:
    asks = {"output_type": "latent", "num_inference_steps": 2, "width": 32, "height": 32, "guidance_scale": 1.0}
    small = replace(asked(CONTROLS[name]), **asks)
    ours, wide = engine(model, map_folder, frugal(model)), engine(model, map_folder, 2 * roomy(model))
    results = [e.sample(small).latents for e in (ours, wide)]
    assert all(torch.equal(found, plenty.sample(small).latents) for found in results)
    for e, waits in ((ours, True), (wide, False)):
        weights, before = e.control(small.controls[0]), everything(model)
        parts = (
            [weights.attention, weights.projection.tensors, weights.image_encoder.tensors]
            if name == "ImagePrompt"
            else [weights.tensors]
        )
        assert all(isinstance(part, Elsewhere) == waits for part in parts)
        own = sum(tensor.nbytes for part in parts for tensor in part.values())
        assert waits or e.backend._budget.resident == before + own


def test_captured_steps_make_room_for_an_image(model: Model, map_folder: Path, plenty: bridle.Engine) -> None:
    """Only where an image does not fit beside what they hold."""
    small = replace(asked(), num_inference_steps=2, width=128, height=128)
    again = replace(small, image=picture(4), strength=1.0)
    side = 128 // model.vae.config.scale
    for request in (small, again):
        wanted = plenty.sample(request).latents
        for tight, releases in ((False, [0, 0]), (True, [1, 2])):
            ours = engine(model, map_folder, 10 * roomy(model))
            budget = ours.backend._budget
            if tight:
                budget.limit = budget.need(model, Load(2, (side, side)))
            for count in releases:
                assert torch.equal(ours.sample(request).latents, wanted)
                assert ours.backend.graphs.releases == count


def test_a_capture_has_the_memory_of_activations_alone_where_there_is_no_more(model: Model, map_folder: Path) -> None:
    """Two kinds of steps in one image: with room for both activations they stay, else each is captured anew."""
    small = replace(asked(), num_inference_steps=4, width=32, height=32, output_type="latent")
    window = replace(small, controls=[replace(REQUEST.controls[0], end=0.5)])
    for tight, captures in ((False, [2, 2]), (True, [2, 4])):
        ours = engine(model, map_folder, 10 * roomy(model))
        ours.control(window.controls[0])
        budget = ours.backend._budget
        side = 32 // model.vae.config.scale
        if tight:
            budget.limit = budget.need(model, Load(2, (side, side), branches=1))
        for count in captures:
            ours.sample(window)
            assert ours.backend.captures == count


def test_a_second_controlnet_is_placed_beside_the_first(model: Model, map_folder: Path, tmp_path: Path) -> None:
    """With a byte less than both need, the second is streamed, and there is room for a request with both."""
    first = REQUEST.controls[0]
    second = replace(first, model=shutil.copytree(map_folder / first.model, tmp_path / "second"))
    size = model.unet.config.sample_size

    def placed(limit: int) -> tuple[bridle.Engine, list[bool]]:
        ours = engine(model, map_folder, roomy(model))
        ours.backend._budget.limit = limit
        return ours, [isinstance(ours.control(control).tensors, Elsewhere) for control in (first, second)]

    ours, streamed = placed(10 * roomy(model))
    assert streamed == [False, False]
    need = ours.backend._budget.need(model, Load(2, size, branches=2, tiled=True))
    assert placed(need)[1] == [False, False]
    ours, streamed = placed(need - 1)
    assert streamed == [False, True]
    ours.backend.admit(2, size, 2)


def test_what_waits_is_laid_out_too(model: Model, map_folder: Path) -> None:
    tight = engine(model, map_folder, frugal(model)).backend.model.unet.tensors
    assert isinstance(tight, Elsewhere)
    kernels = [tensor for tensor in tight.values() if tensor.ndim == 4 and tensor.shape[-1] > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_programs_keep_to_the_memory_that_is_left(model: Model, map_folder: Path) -> None:
    small = [
        replace(asked(), num_inference_steps=1, width=width, height=32, output_type="latent") for width in (32, 64)
    ]
    ours = engine(model, map_folder, 10 * roomy(model))
    for _ in range(2):
        for request in small:
            ours.sample(request)
    assert ours.backend.captures == 2
    budget = ours.backend._budget
    budget.spare = lambda *_: 1  # type: ignore[method-assign]
    for _ in range(2):
        for request in small:
            ours.sample(request)
    assert ours.backend.captures == 2 + 3, "the second size is there at first, and then nothing but the last"


@pytest.mark.parametrize(("failures", "works"), [(1, True), (2, False)])
def test_a_capture_without_memory_is_tried_once_more_in_what_others_held(
    model: Model, map_folder: Path, plenty: bridle.Engine, failures: int, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        replace(asked(), num_inference_steps=1, width=width, height=32, output_type="latent") for width in (32, 64)
    )
    ours = engine(model, map_folder, 10 * roomy(model))
    ours.sample(first)
    left, capture = [failures], ours.backend.graphs.capture

    def full(run: object) -> object:
        if left[0]:
            left[0] -= 1
            try:
                raise torch.OutOfMemoryError("no memory")
            finally:
                # As the end of a broken capture hides what broke it.
                raise RuntimeError("no memory: a stream was not joined")
        return capture(run)  # type: ignore[arg-type]

    monkeypatch.setattr(ours.backend.graphs, "capture", full)
    if works:
        assert torch.equal(ours.sample(second).latents, plenty.sample(second).latents)
    else:
        with pytest.raises(torch.OutOfMemoryError, match="no memory"):
            ours.sample(second)
    assert ours.backend.uncaptured == 0 and ours.backend.graphs.releases == 1


def test_what_is_fetched_is_dropped() -> None:
    here, there = torch.ones(2), torch.ones(3)
    found = Elsewhere({"here": here, "there": there}, torch.device("meta"))
    assert (
        found["there"].device.type == "meta"
        and there.device == CPU
        and len(found) == 2
        and set(found) == {"here", "there"}
    )
    assert Elsewhere({"here": here}, CPU)["here"] is here


def test_rows_of_requests_are_counted(plenty: bridle.Engine) -> None:
    def found(*changes: dict[str, object], alone: bool = False) -> list[tuple[tuple[int, int], int, int]]:
        return list(loads([prepare(plenty.backend, asked(change), plenty.control) for change in changes], alone))

    assert found({}) == [((6, 8), 2, 0)] and found({"guidance_scale": 1.0}) == [((6, 8), 1, 0)]
    assert found(CONTROLS["ControlNet"], {"num_images": 3}) == [((6, 8), 8, 1)]
    assert found(CONTROLS["ControlNet"], {"num_images": 3}, alone=True) == [((6, 8), 2, 1)]
    assert found(CONTROLS["PromptEdit"]) == [((6, 8), 4, 0)]
    assert found(CONTROLS["latent regions"]) == [((6, 8), 6, 0)]
    assert found({"width": 512, "height": 512, "num_images": 40}) == [((64, 64), 32, 0)], "one evaluation has no more"


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize(("side", "rows"), [(32, 1), (64, 2)])
def test_sums_cover_what_an_evaluation_takes(model: Model, side: int, rows: int) -> None:
    """Of the reference, whose ops keep more than fused ones do; and they are no wild guess."""
    from bridle.networks import unet
    from bridle.rows import Rows
    from bridle.segment_stack import stack_context

    backend = ReferenceBackend(model, CPU, torch.float32)
    with torch.inference_mode():
        config = model.unet.config
        kv = backend.cross_kv(model.unet, torch.randn(1, 77, config.cross_attention_dim))
        time = backend.time_table(model.unet, torch.tensor([500.0]), None).expand(rows, -1).contiguous()
        given = Rows(torch.randn(rows, 4, side, side), time, (stack_context([kv] * rows),))
        with Alive() as alive:
            unet.unet(backend.ops, model.unet.tensors, config, given, {})
        estimate = 4 * rows * row_elements(config, (side, side))
        assert 0.2 * estimate < alive.most < estimate
        latents = torch.randn(1, 4, side, side)
        with Alive() as alive:
            backend.decode_image(latents, tiling=False)
        estimate = 4 * decode_elements(model.vae.config, (side, side), False)
        assert 0.2 * estimate < alive.most < estimate


def test_need_grows_with_rows_sizes_and_branches(model: Model) -> None:
    budget = MemoryBudget(2**60, CPU, 2)
    budget.place_model(model)
    needs = [
        budget.need(model, load)
        for load in (Load(64, (64, 64)), Load(128, (64, 64)), Load(128, (96, 64)), Load(128, (96, 64), branches=2))
    ]
    assert needs == sorted(needs) and len(set(needs)) == 4
    assert budget.need(model, Load(1, (64, 64), tiled=True)) < budget.need(model, Load(1, (64, 64)))
