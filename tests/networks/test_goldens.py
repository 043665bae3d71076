"""The networks against vectors computed with the official ControlNet and T2I-Adapter code (tests/goldens)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_networks import TappingOps
from torch import Tensor

from bridle.networks import adapters, controlnet, unet
from bridle.networks.configs import AdapterConfig, ControlNetConfig, EncoderConfig, UNetConfig
from bridle.rows import Branch, ContextPiece, ContextSegment, Residual, Residuals, Rows
from bridle.weights.key_maps import adapter_names, controlnet_names, to_diffusers, unet_names
from bridle_kernels.ops import Ops, ReferenceOps


def read_floats(official: Mapping[str, Tensor], names: Mapping[str, str], prefix: str) -> dict[str, Tensor]:
    """float32 tensors under diffusers names, by the package's own key maps."""
    return {key: tensor.float() for key, tensor in to_diffusers(official, names, prefix).items()}


GOLDENS = Path(__file__).parents[1] / "goldens"
TOLERANCE = 2e-5
TRAJECTORY_TOLERANCE = 1e-4
OFFICIAL_GUESS_RATIO = 0.825
OPS = ReferenceOps()

SMALL_SD1 = {
    "block_out_channels": (32, 32, 32, 32),
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
}

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def load(case: str, part: str) -> dict[str, Tensor]:
    return load_file(GOLDENS / case / f"{part}.safetensors")


def close(got: Tensor, wanted: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
    assert got.shape == wanted.shape, name
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max()), name


@dataclass(frozen=True)
class Net:
    """A network with its weights."""

    config: EncoderConfig
    weights: Mapping[str, Tensor]

    def time(self, timesteps: Tensor, added: Tensor | None = None) -> Tensor:
        return unet.time_table(OPS, self.weights, self.config, timesteps.float(), added)

    def context(self, *tokens: Tensor) -> tuple[ContextSegment, ...]:
        pieces = tuple(ContextPiece(unet.cross_kv(OPS, self.weights, self.config, t)) for t in tokens)
        return (ContextSegment(pieces),)


def load_unet(case: str) -> Net:
    config = UNetConfig.from_dict(SMALL_SD1, case)
    official = load(case, "weights")
    weights = read_floats(official, unet_names(config), "model.diffusion_model.")
    return Net(config, weights)


def load_branch() -> Net:
    config = ControlNetConfig.from_dict(SMALL_SD1, "controlnet/public-branch")
    official = load("controlnet/public-branch", "weights")
    return Net(config, read_floats(official, controlnet_names(config), "control_model."))


def test_every_official_tensor_is_read() -> None:
    branch, net = load_branch(), load_unet("controlnet/public-unet")
    assert shapes(branch.weights) == controlnet.tensor_shapes(branch.config)
    assert shapes(net.weights) == unet.tensor_shapes(net.config)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def run_branch(
    net: Net, x: Tensor, timesteps: Tensor, context: Tensor, hint: Tensor, ops: ReferenceOps
) -> tuple[Tensor, ...]:
    encoded = controlnet.encode_hint(ops, net.weights, net.config, hint)
    rows = x.shape[0]
    scale = torch.ones(rows, 13)
    branch = Branch(
        net.weights, net.config, tuple(range(rows)), net.time(timesteps), net.context(context), encoded, scale
    )
    return controlnet.controlnet(ops, net.weights, net.config, branch, x)


def test_controlnet_branch(ops: Ops) -> None:
    net, inputs, wanted = (
        load_branch(),
        load("controlnet/public-branch", "inputs"),
        load("controlnet/public-branch", "outputs"),
    )
    ops = TappingOps()
    x = inputs["x"].repeat(2, 1, 1, 1)
    got = run_branch(net, x, inputs["t_rows"], inputs["context"], inputs["hint"], ops)
    for index, residual in enumerate(got):
        close(residual, wanted[f"residual.{index}"], f"residual.{index}")
    for k in (1, 3, 6, 9, 11):
        close(ops.points[f"block.{k}"], wanted[f"h.{k}"], f"h.{k}")
    close(ops.points["mid"], wanted["h.mid"], "h.mid")
    close(controlnet.encode_hint(ops, net.weights, net.config, inputs["hint"]), wanted["guided_hint"], "guided_hint")
    blank = run_branch(net, x, inputs["t_rows"], inputs["context"], inputs["hint"] * 0, ops)
    for index in (0, 5, 12):
        close(blank[index], wanted[f"zero_hint.residual.{index}"], f"zero_hint.residual.{index}")


def scaled(residuals: Sequence[Tensor], scales: Sequence[float], rows: tuple[int, ...] | None = None) -> Residuals:
    points = [*(f"skip.{k}" for k in range(12)), "mid"]
    count = residuals[0].shape[0]
    return {
        point: (Residual(values, torch.full((count,), scale), rows),)
        for point, values, scale in zip(points, residuals, scales, strict=True)
        if scale
    }


def guess_scales(strength: float) -> list[float]:
    return [strength * OFFICIAL_GUESS_RATIO ** (12 - k) for k in range(13)]


def only(index: int) -> list[float]:
    return [1.0 if k == index else 0.0 for k in range(13)]


SCALES = {
    "eps.plain": [0.0] * 13,
    "eps.scale1": [1.0] * 13,
    "eps.strength": [0.75] * 13,
    "eps.guess": guess_scales(0.75),
    "eps.only_mid": only(12),
    **{f"eps.only_residual.{k}": only(k) for k in (0, 4, 11, 12)},
}


@pytest.mark.parametrize("name", SCALES)
def test_unet_under_controlnet(name: str) -> None:
    case = "controlnet/public-unet"
    net, inputs, wanted = load_unet(case), load(case, "inputs"), load(case, "outputs")
    residuals = [inputs[f"residual.{k}"] for k in range(13)]
    rows = Rows(inputs["x"].repeat(2, 1, 1, 1), net.time(inputs["t_same"]), net.context(inputs["context"]))
    ops = TappingOps()
    got = unet.unet(ops, net.weights, net.config, rows, scaled(residuals, SCALES[name]))
    close(got, wanted[name], name)
    if name == "eps.scale1":
        taps = {"block.2": "in.2", "block.11": "in.11", "mid": "mid_before_add"}
        taps |= {f"decoder.{j}": f"out.{j}" for j in (2, 5, 11)}
        for mine, theirs in taps.items():
            close(ops.points[mine], wanted[f"scale1.{theirs}"], theirs)


@pytest.mark.parametrize("mode", ["normal", "guess"])
def test_controlled_trajectory(mode: str, ops: Ops) -> None:
    """Official DDIM, 4 steps, eta 0, guidance 9; in guess mode the unconditional row has no control at all."""
    case = "controlnet/public-unet"
    net, branch, wanted = load_unet(case), load_branch(), load(case, "outputs")
    inputs = load(case, "inputs")
    hint = load("controlnet/public-branch", "inputs")["hint"][:1]
    scales = guess_scales(0.75) if mode == "guess" else [0.75] * 13
    rows = (1,) if mode == "guess" else (0, 1)
    context = inputs["context"]
    cumulative = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    x, steps = inputs["x"], [751, 501, 251, 1]
    for index, t in enumerate(steps):
        times = torch.full((len(rows),), float(t))
        controlled = run_branch(
            branch, x.repeat(len(rows), 1, 1, 1), times, context[list(rows)], hint.repeat(len(rows), 1, 1, 1), ops
        )
        both = Rows(x.repeat(2, 1, 1, 1), net.time(torch.full((2,), float(t))), net.context(context))
        eps = unet.unet(ops, net.weights, net.config, both, scaled(controlled, scales, rows))
        guided = eps[:1] + 9.0 * (eps[1:] - eps[:1])
        now = cumulative[t]
        after = cumulative[steps[index + 1]] if index < 3 else cumulative[0]
        clean = (x - (1 - now) ** 0.5 * guided) / now**0.5
        close(clean, wanted[f"traj.{mode}.pred_x0.{index}"], f"pred_x0.{index}", TRAJECTORY_TOLERANCE)
        x = after**0.5 * clean + (1 - after) ** 0.5 * guided
    close(x, wanted[f"traj.{mode}.final"], "final", TRAJECTORY_TOLERANCE)


ADAPTERS = {
    "t2i-adapter/public-full": {"adapter_type": "full_adapter", "in_channels": 1, "channels": (16, 24, 32, 32)},
    "t2i-adapter/public-light": {
        "adapter_type": "light_adapter",
        "in_channels": 3,
        "channels": (16, 24, 32),
        "num_res_blocks": 4,
    },
    "t2i-adapter/public-xl": {
        "adapter_type": "full_adapter_xl",
        "in_channels": 1,
        "channels": (16, 24, 32, 32),
        "downscale_factor": 16,
    },
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapter(case: str, ops: Ops) -> None:
    config = AdapterConfig.from_dict(ADAPTERS[case], case)
    official = load(case, "weights")
    weights = read_floats(official, adapter_names(config), "")
    assert len(weights) == len(official)
    assert shapes(weights) == adapters.tensor_shapes(config)
    wanted = load(case, "outputs")
    got = adapters.adapter(ops, weights, config, load(case, "inputs")["image"])
    for index, feature in enumerate(got):
        close(feature, wanted[f"feature.{index}"], f"feature.{index}")


def adapter_residuals(net: Net, features: Mapping[str, Tensor], scale: float = 1.0) -> Residuals:
    points = dict(zip(sorted(features), unet.adapter_points(net.config), strict=False))
    return {point: (Residual(features[name], torch.full((1,), scale)),) for name, point in points.items()}


def test_adapter_maps_and_style_tokens_in_the_unet(ops: Ops) -> None:
    case = "t2i-adapter/public-unet"
    net, inputs, wanted = load_unet(case), load(case, "inputs"), load(case, "outputs")
    context = torch.cat([inputs["context_uncond"], inputs["context_cond"]])
    style = inputs["style_tokens"].expand(2, -1, -1)
    maps = adapter_residuals(net, {k: v for k, v in inputs.items() if k.startswith("features.0.")})
    rows = Rows(inputs["z"].repeat(2, 1, 1, 1), net.time(inputs["t_pair"]), net.context(context))
    styled = replace(rows, context=net.context(wanted["context.style_rows"]))
    appended = replace(rows, context=net.context(context, style))
    cases = {
        "eps.plain": (rows, {}),
        "eps.maps": (rows, maps),
        "eps.style": (styled, {}),
        "eps.maps_style": (styled, maps),
        "eps.append_to_context": (appended, {}),
        "eps.maps_rows": (replace(rows, time=net.time(inputs["t_rows"])), maps),
    }
    for name, (row_case, residuals) in cases.items():
        close(unet.unet(ops, net.weights, net.config, row_case, residuals), wanted[name], name)
    ops = TappingOps()
    unet.unet(ops, net.weights, net.config, rows, maps)
    taps = {f"maps.in.{k}": f"block.{k}" for k in range(12)} | {"maps.mid": "mid"}
    taps |= {f"maps.out.{j}": f"decoder.{j}" for j in (2, 5, 8, 11)}
    for theirs, mine in taps.items():
        close(ops.points[mine], wanted[theirs], theirs)


def test_adapter_maps_in_the_xl_unet(ops: Ops) -> None:
    case = "t2i-adapter/public-xl-unet"
    fields = json.loads((GOLDENS / case / "config.json").read_text())["network"]
    config = UNetConfig.from_dict(fields, case)
    net = Net(config, {name: tensor.float() for name, tensor in load(case, "weights").items()})
    inputs, wanted = load(case, "inputs"), load(case, "outputs")
    added = unet.added_embedding(ops, net.weights, config, inputs["text_embeds"], inputs["time_ids"].float())
    sample = inputs["z"].repeat(2, 1, 1, 1)
    rows = Rows(sample, net.time(inputs["t_rows"], added), net.context(inputs["context"]))
    features = {k: v for k, v in inputs.items() if k.startswith("features.")}
    cases = {"eps.plain": {}, "eps.maps": adapter_residuals(net, features)}
    cases["eps.maps_scaled"] = adapter_residuals(net, features, 0.8)
    everything = adapter_residuals(net, features)
    cases |= {f"eps.only_map.{j}": {p: everything[p]} for j, p in enumerate(unet.adapter_points(config))}
    for name, residuals in cases.items():
        close(unet.unet(ops, net.weights, config, rows, residuals), wanted[name], name)
    ops = TappingOps()
    unet.unet(ops, net.weights, config, rows, everything)
    close(ops.points["mid"], wanted["maps.mid_before_add"], "mid")
    for n in range(1, 9):
        point = f"block.{n}"
        added_map = everything[point][0].values if point in everything else 0.0
        close(ops.points[point] + added_map, wanted[f"maps.skip.{n}"], f"skip.{n}")
