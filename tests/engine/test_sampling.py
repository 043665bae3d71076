"""What sampling promises: off means off, lists, masks, static work, callbacks, cancellation, faults, metadata."""

import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import half_mask, latents, picture, rel_l2, request, with_dtype
from watched_ops import CountingOps, NamingOps

import bridle
from bridle.weights import load_controlnet

CONTROLS = {
    "controlnet": lambda **fields: bridle.ControlNet("controlnet", picture(), **fields),
    "adapter": lambda **fields: bridle.T2IAdapter("t2i-adapter", picture(), **fields),
}
both = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)


@both
def test_off_is_the_plain_run(engine: bridle.Engine, control: object) -> None:
    plain = latents(engine, num_inference_steps=4)
    for off in (control(scale=0.0), control(start=0.9, end=0.95)):
        assert torch.equal(latents(engine, num_inference_steps=4, controls=[off]), plain)
    assert rel_l2(latents(engine, num_inference_steps=4, controls=[control()]), plain) > 1e-3


@both
def test_mask(engine: bridle.Engine, control: object) -> None:
    plain = latents(engine, num_inference_steps=1)
    full = latents(engine, num_inference_steps=1, controls=[control()])
    ones = latents(engine, num_inference_steps=1, controls=[control(mask=np.ones((128, 128), dtype=bool))])
    half = latents(engine, num_inference_steps=1, controls=[control(mask=half_mask())])
    none = latents(engine, num_inference_steps=1, controls=[control(mask=np.zeros((64, 64), dtype=bool))])
    assert rel_l2(ones, full) < 1e-6
    assert rel_l2(none, plain) < 1e-6
    assert rel_l2(half, full) > 1e-3 and rel_l2(half, plain) > 1e-3


MIXED = [
    request(num_inference_steps=4),
    request(prompt="a blue star " * 40, seed=8, num_inference_steps=7, scheduler="euler a"),
    request(num_inference_steps=5, controls=[CONTROLS["controlnet"](mask=half_mask())], guidance_scale=1.0),
    request(num_inference_steps=6, controls=[CONTROLS["adapter"](), CONTROLS["controlnet"](guess_mode=True)]),
    request(num_inference_steps=3, image=picture(), mask_image=half_mask(), scheduler="dpm++ 2m"),
    request(num_inference_steps=2, width=64, height=96),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_list_equals_single_requests(engine: bridle.Engine, dtype: torch.dtype) -> None:
    """Within twice the rounding noise of the type: how far the same request is from its float64 run."""
    own, exact = with_dtype(engine, dtype), with_dtype(engine, torch.float64)
    for order in (MIXED, MIXED[::-1]):
        together = own.sample(order)
        for one, result in zip(order, together, strict=True):
            alone = own.sample(one).latents
            noise = rel_l2(alone, exact.sample(one).latents)
            assert 0 < noise < (1e-4 if dtype == torch.float32 else 0.5)
            assert rel_l2(result.latents, alone) <= 2 * noise
            assert result.latents.dtype == torch.float32


def test_images_of_a_request_have_seeds_of_their_own(engine: bridle.Engine) -> None:
    several = latents(engine, seed=5, num_images=3, num_inference_steps=3, scheduler="euler a")
    for index, seed in enumerate((5, 6, 7)):
        assert rel_l2(several[index], latents(engine, seed=seed, num_inference_steps=3, scheduler="euler a")[0]) < 1e-5
    chosen = latents(engine, seed=[9, 2], num_images=2, num_inference_steps=3)
    assert rel_l2(chosen[1], latents(engine, seed=2, num_inference_steps=3)[0]) < 1e-5


def test_prompt_weights_and_length_matter(engine: bridle.Engine) -> None:
    plain = latents(engine, num_inference_steps=2)
    assert rel_l2(latents(engine, num_inference_steps=2, prompt="a (red:1.4) circle"), plain) > 1e-4
    literal = latents(engine, num_inference_steps=2, prompt="a (red:1.4) circle", prompt_syntax="plain")
    assert rel_l2(literal, plain) > 1e-4
    long = "a red circle " * 50
    assert (
        rel_l2(
            latents(engine, num_inference_steps=2, prompt=long),
            latents(engine, num_inference_steps=2, prompt=long + "x"),
        )
        > 0
    )


def test_static_work_is_done_once(folder: Path) -> None:
    controls = [CONTROLS["controlnet"](), CONTROLS["adapter"]()]

    def calls(steps: int) -> Counter[str]:
        engine = bridle.load(folder, backend="reference")
        counting = CountingOps()
        engine.backend.ops = counting
        latents(engine, num_inference_steps=steps, controls=controls)
        return counting.calls

    two, three, five = calls(2), calls(3), calls(5)
    for name in two:
        assert five[name] - three[name] == 2 * (three[name] - two[name]), name
    per_step = {name: three[name] - two[name] for name in three}
    for name in ("embedding", "pixel_unshuffle", "time_embedding", "average_pool"):
        assert per_step[name] == 0, name
    # One projection of the text to K and V per site before the first step; queries alone in every step.
    engine = bridle.load(folder)
    branch = load_controlnet(folder / "controlnet", dtype=None, device=engine.backend.device, base=engine.backend.model)
    sites = sum(
        name.endswith("attn2.to_q.weight") for part in (engine.backend.model.unet, branch) for name in part.tensors
    )
    assert sites == 16 + 7
    assert per_step["attention"] == 2 * sites


@pytest.mark.parametrize("fixture", ["folder", "xl_folder"])
def test_every_weight_is_used_once_a_step_or_once_a_request(fixture: str, request: pytest.FixtureRequest) -> None:
    """Text K and V, time and size embeddings, hints and adapters before the first step; all else once for all rows."""
    engine = bridle.load(request.getfixturevalue(fixture), backend="reference")
    controls = [CONTROLS["controlnet"](), CONTROLS["adapter"]()]
    parts = {
        "unet": engine.backend.model.unet,
        "branch": engine.control(controls[0]),
        "adapter": engine.control(controls[1]),
    }
    names = {tensor.data_ptr(): f"{part}/{key}" for part, of in parts.items() for key, tensor in of.tensors.items()}

    def uses(steps: int) -> Counter[str]:
        engine.backend.ops = NamingOps(names)
        latents(engine, num_inference_steps=steps, controls=controls)
        return engine.backend.ops.uses

    two, five = uses(2), uses(5)
    static = ("attn2.to_k", "attn2.to_v", "time_emb", "add_embedding", "controlnet_cond_embedding", "adapter/")
    assert set(two) == set(names.values())
    for name in names.values():
        expected = 0 if any(part in name for part in static) else 3
        assert five[name] - two[name] == expected, (name, two[name], five[name])
        # Once for each of the two rows of guidance; the adapter and the hint serve both.
        assert two[name] == (1 if "cond_embedding" in name or "adapter/" in name else 2), (name, two[name])


def test_callback_sees_every_step_and_cancels(engine: bridle.Engine) -> None:
    seen: list[tuple[int, int]] = []

    def observe(snapshot: bridle.StepSnapshot) -> None:
        seen.append((snapshot.request_index, snapshot.step))
        assert snapshot.latents.shape == snapshot.denoised.shape == (4, 16, 16)
        if snapshot.request_index == 0 and snapshot.step == 2:
            snapshot.cancel()

    requests = [request(num_inference_steps=4), request(num_inference_steps=3, seed=9)]
    with pytest.raises(bridle.BatchError) as caught:
        engine.sample(requests, callback=observe)
    stopped, finished = caught.value.results
    assert isinstance(stopped, bridle.Cancelled) and stopped.step == 2
    assert isinstance(finished, bridle.Result)
    assert rel_l2(finished.latents, engine.sample(requests[1]).latents) < 1e-5
    assert seen == [(0, 1), (1, 1), (0, 2), (1, 2), (1, 3)]


def test_last_denoised_is_the_result(engine: bridle.Engine) -> None:
    """Euler's last step goes to sigma 0: its preview is the image. Previews can be decoded like results."""
    last: list[bridle.StepSnapshot] = []
    asked = request(num_inference_steps=4, scheduler="euler", output_type="np")
    result = engine.sample(asked, callback=last.append)
    assert rel_l2(last[-1].denoised, result.latents[0]) < 1e-5
    assert rel_l2(last[0].denoised, result.latents[0]) > 1e-3
    assert [(s.step, s.num_steps, s.image_index) for s in last] == [(k, 4, 0) for k in (1, 2, 3, 4)]
    assert [s.timestep for s in last] == sorted((s.timestep for s in last), reverse=True)
    preview = engine.backend.decode_image(last[-1].denoised[None], tiling=False)[0].permute(1, 2, 0)
    assert np.abs((preview / 2 + 0.5).clamp(0, 1).numpy() - result.images[0]).max() < 1e-3


def test_a_callback_that_raises_or_changes_its_snapshot_harms_nobody(engine: bridle.Engine) -> None:
    requests = [request(num_inference_steps=3), request(num_inference_steps=3, seed=9)]

    def observe(snapshot: bridle.StepSnapshot) -> None:
        snapshot.latents.fill_(torch.nan)
        snapshot.denoised.fill_(torch.nan)
        if snapshot.request_index == 0 and snapshot.step == 2:
            raise LookupError("the caller's own")

    with pytest.raises(bridle.BatchError) as caught:
        engine.sample(requests, callback=observe)
    raised, finished = caught.value.results
    assert isinstance(raised, LookupError) and isinstance(finished, bridle.Result)
    assert rel_l2(finished.latents, engine.sample(requests[1]).latents) < 1e-5
    with pytest.raises(LookupError):
        engine.sample(requests[0], callback=observe)


def test_a_callback_may_use_the_engine(engine: bridle.Engine) -> None:
    inner: list[torch.Tensor] = []
    one, other = request(num_inference_steps=2), request(num_inference_steps=2, seed=9)
    result = engine.sample(one, callback=lambda _: inner.append(engine.sample(other).latents))
    assert torch.equal(result.latents, engine.sample(one).latents)
    assert all(torch.equal(latent, engine.sample(other).latents) for latent in inner) and len(inner) == 2


def test_threads_share_an_engine(folder: Path) -> None:
    """Controls are loaded by whoever comes first; no request sees another's state."""
    engine = bridle.load(folder)
    alone = [bridle.load(folder).sample(one).latents for one in MIXED[1:5]]
    with ThreadPoolExecutor(4) as pool:
        for wanted, got in zip(alone, pool.map(engine.sample, MIXED[1:5]), strict=True):
            assert torch.equal(got.latents, wanted)


def test_progress_bar(engine: bridle.Engine, capsys: pytest.CaptureFixture[str]) -> None:
    requests = [request(num_inference_steps=3), request(num_inference_steps=2)]
    engine.sample(requests, progress=True)
    assert "5/5" in capsys.readouterr().err
    engine.sample(requests, progress=False)
    engine.sample(requests)
    assert capsys.readouterr().err == ""


def test_nothing_touches_the_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    engine = bridle.load(folder)
    engine.sample(request(num_inference_steps=1, controls=[control() for control in CONTROLS.values()]))
    for missing in ("nobody/nothing", "nothing"):
        with pytest.raises(bridle.ModelLoadError):
            bridle.load(missing)
    with pytest.raises(AssertionError, match="a connection to"):
        socket.create_connection(("example.invalid", 80), timeout=0.1)


def test_a_fault_of_one_request_leaves_the_others(engine: bridle.Engine) -> None:
    bad = torch.full((1, 4, 16, 16), 1e38)
    healthy = request(num_inference_steps=3, seed=9)
    with pytest.raises(bridle.BatchError) as caught:
        engine.sample([request(num_inference_steps=3, latents=bad), healthy])
    fault, result = caught.value.results
    assert isinstance(fault, bridle.NumericFault)
    assert rel_l2(result.latents, engine.sample(healthy).latents) < 1e-5
    with pytest.raises(bridle.NumericFault):
        engine.sample(request(num_inference_steps=3, latents=bad))


def test_strength_zero_and_inpainting_keep_what_they_should(engine: bridle.Engine) -> None:
    kept = engine.sample(request(image=picture(), strength=0.0))
    painted = latents(engine, image=picture(), mask_image=half_mask(), num_inference_steps=5)
    assert rel_l2(painted[..., :8], kept.latents[..., :8]) < 1e-5
    assert rel_l2(painted[..., 8:], kept.latents[..., 8:]) > 1e-2


def test_output_types_and_tiling(engine: bridle.Engine) -> None:
    pil = engine.sample(request(num_inference_steps=2, output_type="pil"))
    array = engine.sample(request(num_inference_steps=2, output_type="np"))
    tiled = engine.sample(request(num_inference_steps=2, output_type="np", vae_tiling=True))
    assert pil.images[0].size == (128, 128) and array.images.shape == (1, 128, 128, 3)
    assert np.abs(np.asarray(pil.images[0]) / 255.0 - array.images[0]).max() < 0.003
    assert np.abs(tiled.images - array.images).max() < 1e-4
    pil.latents.mul_(2).requires_grad_().sum().backward()
    assert set(pil.timings) == {"text", "controls", "images", "denoise", "decode"}


def test_scheduler_dictionary(engine: bridle.Engine) -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    ours = latents(engine, num_inference_steps=3, scheduler=config)
    assert rel_l2(ours, latents(engine, num_inference_steps=3, scheduler="euler")) > 1e-3
