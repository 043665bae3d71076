"""Exported text encoders, autoencoders, ControlNets, adapters and image prompts against the networks."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from onnx_runs import Session, assert_equal, save, variants_of
from tiny_networks import SD1, SDXL, encode, make_branch, make_inputs, randomise
from torch import Tensor

from bridle.networks import adapters, clip_vision, controlnet, taesd, text, unet, vae
from bridle.networks.configs import ControlNetConfig, LinearProjectionConfig
from bridle.networks.image_projection import project_image
from bridle.new_model import write_new_model
from bridle.weights import Model, load_adapter, load_ip_adapter, load_model
from bridle.weights.folder import NETWORKS
from bridle.weights.model import Component
from bridle_exporters.onnx_graphs import networks
from bridle_kernels.ops import ReferenceOps

OPS = ReferenceOps()
POCKET = Path(unet.__file__).parents[1] / "assets" / "pocket"


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pocket() -> Model:
    return load_model(POCKET, dtype=torch.float32)


@pytest.fixture(scope="module", params=["tiny", "tiny-xl"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("model") / request.param
    write_new_model(request.param, folder, t2i=True)
    return load_model(folder, dtype=torch.float32), folder


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_text_encoders(tiny: tuple[Model, Path], pocket: Model, tmp_path: Path) -> None:
    for number, encoder in enumerate((*tiny[0].text_encoders, *pocket.text_encoders)):
        config = encoder.config
        (tmp_path / str(number)).mkdir()
        path = save(tmp_path / str(number), encoder.tensors, partial(networks.text_encoder, component=encoder))
        for rows, length in ((1, 77), (3, 9)):
            generator = torch.Generator().manual_seed(length)
            ids = torch.randint(0, config.vocab_size, (rows, length), generator=generator)
            ids[:, 5:7] = config.vocab_size - 1
            wanted = text.clip_text(OPS, encoder.tensors, config, ids)
            for variant in variants_of(path):
                got = Session(variant)(input_ids=ids)
                assert_equal(got["last_hidden_state"], wanted.hidden)
                assert_equal(got["pooler_output" if config.projection_dim is None else "text_embeds"], wanted.pooled)
            for skip in range(1, config.layers):
                hidden = text.clip_text(OPS, encoder.tensors, config, ids, skip=skip, final_norm=False).hidden
                assert_equal(got[f"hidden_states.{config.layers - skip}"], hidden)
            names = sorted(name for name in got if name.startswith("hidden_states"))
            assert names == [f"hidden_states.{n}" for n in range(config.layers)]


def test_final_norm(pocket: Model, tmp_path: Path) -> None:
    (encoder,) = pocket.text_encoders
    ids = torch.arange(20)[None] + 3
    session = Session(save(tmp_path, encoder.tensors, partial(networks.final_norm, component=encoder)))
    before, wanted = (
        text.clip_text(OPS, encoder.tensors, encoder.config, ids, skip=1, final_norm=normed).hidden
        for normed in (False, True)
    )
    assert_equal(session(hidden_states=before)["last_hidden_state"], wanted)


@pytest.mark.parametrize("size", [(8, 8, 1), (5, 11, 3)])
def test_autoencoder(size: tuple[int, int, int], pocket: Model, tmp_path: Path) -> None:
    height, width, rows = size
    part = pocket.vae
    for name in ("encoder", "decoder"):
        (tmp_path / name).mkdir()
    latents, image = rand(rows, 4, height, width), rand(rows, 3, 8 * height, 8 * width).clamp(-1, 1)
    decoded = vae.vae_decode(OPS, part.tensors, part.config, latents)
    for path in variants_of(save(tmp_path / "decoder", part.tensors, partial(networks.vae_decoder, component=part))):
        assert_equal(Session(path)(latent_sample=latents)["sample"], decoded)
    encoded = torch.cat(vae.vae_encode(OPS, part.tensors, part.config, image), 1)
    for path in variants_of(save(tmp_path / "encoder", part.tensors, partial(networks.vae_encoder, component=part))):
        assert_equal(Session(path)(sample=image)["latent_parameters"], encoded)


def test_tiny_autoencoder(tmp_path: Path) -> None:
    kind, shapes = NETWORKS["AutoencoderTiny"]
    config = kind.from_dict({"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}, "vae")
    tensors = {name: 0.1 * rand(*shape, seed=i) for i, (name, shape) in enumerate(shapes(config).items())}
    part = Component(config, tensors, "vae")
    (tmp_path / "e").mkdir()
    latents, image = rand(2, 4, 3, 5), rand(2, 3, 24, 40)
    decode = Session(save(tmp_path, tensors, partial(networks.vae_decoder, component=part)))
    assert_equal(decode(latent_sample=latents)["sample"], taesd.decode(OPS, tensors, config, latents))
    encoded = Session(save(tmp_path / "e", tensors, partial(networks.vae_encoder, component=part)))
    assert_equal(encoded(sample=image)["latent_sample"], taesd.encode(OPS, tensors, config, image))


@pytest.mark.parametrize("family", ["sd1", "sdxl", "pooled"])
def test_controlnet(family: str, tmp_path: Path) -> None:
    own = {k: v for k, v in (SDXL if family == "sdxl" else SD1).items() if k not in ("up_block_types", "sample_size")}
    extra = {"conditioning_embedding_out_channels": (8, 8, 16, 16), "global_pool_conditions": family == "pooled"}
    order = "bgr" if family == "pooled" else "rgb"
    model = ControlNetModel(**own, **extra, controlnet_conditioning_channel_order=order)
    weights = dict(randomise(model, 1))
    part = Component(ControlNetConfig.from_dict(dict(model.config), "config.json"), weights, "net")
    graphs = {}
    writes = {
        "model": networks.whole_controlnet,
        "hint": networks.hint,
        "denoise": networks.control_denoiser,
        "kv": networks.cross_kv,
        "time": networks.time_table,
    }
    for name, write in writes.items():
        (tmp_path / name).mkdir()
        graphs[name] = variants_of(save(tmp_path / name, weights, partial(write, component=part)))
    assert len(graphs["denoise"]) == len(graphs["model"]) == 4
    for number in range(4):
        sessions = {name: Session(paths[min(number, len(paths) - 1)]) for name, paths in graphs.items()}
        for size, rows in (((6, 9), 2), ((8, 8), 1), ((5, 12), 3)):
            assert_controlnet_equals(part, sessions, size, rows)


def assert_controlnet_equals(
    part: Component[ControlNetConfig], sessions: Mapping[str, Session], size: tuple[int, int], rows: int
) -> None:
    """Whole, scaled, and in parts."""
    weights, (height, width) = part.tensors, size
    inputs = make_inputs(part.config, 2, size, rows)
    step = inputs.timesteps[:1].expand(rows)
    inputs = replace(inputs, timesteps=step)
    image, scale = (
        rand(rows, 3, 8 * height, 8 * width).sigmoid(),
        rand(rows, len(unet.controlnet_points(part.config)), seed=3),
    )
    hint = controlnet.encode_hint(OPS, weights, part.config, image)
    branch = make_branch(weights, part.config, inputs, hint)
    plain = controlnet.controlnet(OPS, weights, part.config, branch, inputs.sample)
    if part.config.global_pool:
        plain = tuple(value.mean((2, 3), keepdim=True) for value in plain)
    feeds = {"sample": inputs.sample, "encoder_hidden_states": inputs.context}
    added = {} if part.config.added_dim is None else {"text_embeds": inputs.pooled, "time_ids": inputs.time_ids}
    whole = sessions["model"](**feeds, **added, timestep=step[0], controlnet_cond=image)
    scaled = sessions["model"](**feeds, **added, timestep=step[0], controlnet_cond=image, conditioning_scale=scale)
    hoisted = sessions["denoise"](
        sample=inputs.sample,
        **sessions["hint"](controlnet_cond=image),
        **sessions["kv"](encoder_hidden_states=inputs.context),
        **sessions["time"](timestep=step, **added),
    )
    names = [*(f"down_block_res_samples.{k}" for k in range(len(plain) - 1)), "mid_block_res_sample"]
    assert list(whole) == names
    for index, (name, wanted) in enumerate(zip(names, plain, strict=True)):
        assert_equal(whole[name], wanted)
        assert_equal(hoisted[name], wanted)
        assert_equal(scaled[name], wanted * scale[:, index, None, None, None])
    assert encode(weights, part.config, inputs)[0].shape == sessions["time"](timestep=step, **added)["time"].shape


def test_adapters(tiny: tuple[Model, Path], pocket: Model, tmp_path: Path) -> None:
    model, folder = tiny
    places = ((folder / "t2i-adapter", model), (POCKET / "t2iadapter-sketch", pocket))
    for number, (place, base) in enumerate(places):
        part = load_adapter(place, dtype=torch.float32, device=torch.device("cpu"), base=base)
        (tmp_path / str(number)).mkdir()
        session = Session(save(tmp_path / str(number), part.tensors, partial(networks.t2i_adapter, component=part)))
        side = part.config.downscale
        for rows, height, width in ((1, 4, 4), (2, 5, 7)):
            image = rand(rows, part.config.in_channels, side * height, side * width).sigmoid()
            got = session(control_image=image)
            twice = session(control_image=image, conditioning_scale=torch.tensor([2.0]))
            for index, wanted in enumerate(adapters.adapter(OPS, part.tensors, part.config, image)):
                name = f"down_intrablock_additional_residuals.{index}"
                assert_equal(got[name], wanted)
                assert_equal(twice[name], 2 * wanted)


@pytest.mark.parametrize("kind", ["base", "plus", "full"])
def test_image_prompts(kind: str, tmp_path: Path) -> None:
    write_new_model("tiny", tmp_path / "model", ip_adapter=kind)
    model, cpu = load_model(tmp_path / "model"), torch.device("cpu")
    adapter = load_ip_adapter(tmp_path / "model" / "ip-adapter", dtype=None, device=cpu, base=model)
    encoder, projection = adapter.image_encoder, adapter.projection
    writes = {
        "encoder": (encoder.tensors, partial(networks.image_encoder, adapter=adapter)),
        "tokens": (projection.tensors, partial(networks.image_tokens, adapter=adapter)),
        "kv": (adapter.attention, partial(networks.kv_outputs, config=model.unet.config, tensors=adapter.attention)),
    }
    graphs = {}
    for name, (weights, write) in writes.items():
        (tmp_path / name).mkdir()
        graphs[name] = [Session(path) for path in variants_of(save(tmp_path / name, weights, write))]
    for rows in (1, 3):
        pixels = rand(rows, 3, encoder.config.image_size, encoder.config.image_size, seed=rows)
        if isinstance(projection.config, LinearProjectionConfig):
            features = clip_vision.image_embeds(OPS, encoder.tensors, encoder.config, pixels)
        else:
            features = clip_vision.hidden_states(OPS, encoder.tensors, encoder.config, pixels, skip=1)
        tokens = project_image(OPS, projection.tensors, projection.config, features)
        assert np.isfinite(tokens.numpy()).all()
        for see in graphs["encoder"]:
            assert_equal(see(pixel_values=pixels)["image_features"], features)
        for project in graphs["tokens"]:
            assert_equal(project(image_features=features)["image_tokens"], tokens)
        (attend,) = graphs["kv"]
        got = attend(encoder_hidden_states=tokens)
        for index, pair in enumerate(unet.cross_kv(OPS, adapter.attention, model.unet.config, tokens)):
            assert_equal(got[f"k.{index}"], pair.k)
            assert_equal(got[f"v.{index}"], pair.v)
