"""More pipelines against diffusers: SD 2.x, SDXL inpainting, several adapters, controls with pictures, TAESD, batches."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from control_cases import write_sd2
from diffusers import (
    ControlNetModel,
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from PIL import Image
from runs import (
    diffusers_latents,
    half_mask,
    latents,
    picture,
    rel_l2,
    request,
    with_input_channels,
    with_tiny_autoencoder,
)
from tiny_networks import randomise

import bridle

TOLERANCE = 1e-3
MASK = Image.fromarray(half_mask())


@pytest.fixture(scope="module")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("sd2") / "model"
    write_sd2(path)
    yield path


def test_sd2_velocity(sd2_folder: Path) -> None:
    engine = bridle.load(sd2_folder)
    pipeline = StableDiffusionPipeline.from_pretrained(sd2_folder)
    theirs = diffusers_latents(pipeline)
    assert rel_l2(latents(engine), theirs) <= TOLERANCE
    wrong = {**engine.backend.model.scheduler, "prediction_type": "epsilon"}
    assert rel_l2(latents(engine, scheduler=wrong), theirs) > 0.1


def test_sd2_controlnet(sd2_folder: Path) -> None:
    net = ControlNetModel.from_pretrained(sd2_folder / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(sd2_folder, controlnet=net)
    theirs = diffusers_latents(pipeline, image=picture(), controlnet_conditioning_scale=0.8)
    controls = [bridle.ControlNet("controlnet", picture(), scale=0.8)]
    assert rel_l2(latents(bridle.load(sd2_folder), controls=controls), theirs) <= TOLERANCE


def test_sd2_inpainting_and_zero_terminal_snr(sd2_folder: Path, tmp_path: Path) -> None:
    own = with_input_channels(sd2_folder, tmp_path / "model", 9)
    file = own / "scheduler/scheduler_config.json"
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **zero}))
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(own)
    theirs = diffusers_latents(pipeline, image=picture(), mask_image=MASK, width=128, height=128)
    assert rel_l2(latents(bridle.load(own), image=picture(), mask_image=half_mask()), theirs) <= TOLERANCE


@pytest.mark.parametrize(("channels", "strength"), [(4, 0.7), (9, 0.99), (9, 1.0)])
def test_xl_inpainting(xl_folder: Path, tmp_path: Path, channels: int, strength: float) -> None:
    own = xl_folder if channels == 4 else with_input_channels(xl_folder, tmp_path / "model", channels)
    pipeline = StableDiffusionXLInpaintPipeline.from_pretrained(own)
    arguments = {"mask_image": MASK, "width": 128, "height": 128}
    theirs = diffusers_latents(pipeline, image=picture(), strength=strength, **arguments)
    ours = latents(bridle.load(own), image=picture(), mask_image=half_mask(), strength=strength)
    assert rel_l2(ours, theirs) <= TOLERANCE


def test_xl_negative_sizes(xl_folder: Path, xl_engine: bridle.Engine) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    sizes = {"original_size": (256, 200), "target_size": (128, 96)}
    negative = {
        "negative_original_size": (64, 32),
        "negative_crops_coords_top_left": (3, 5),
        "negative_target_size": (77, 66),
    }
    ours = latents(xl_engine, negative_prompt_2="dull", **sizes, **negative)
    theirs = diffusers_latents(pipeline, negative_prompt_2="dull", **sizes, **negative)
    assert rel_l2(ours, theirs) <= TOLERANCE
    for left_out in negative:
        kept = {name: value for name, value in negative.items() if name != left_out}
        assert rel_l2(latents(xl_engine, negative_prompt_2="dull", **sizes, **kept), theirs) > TOLERANCE, left_out


@pytest.mark.parametrize("guess", [False, True])
def test_xl_several_controlnets(xl_folder: Path, xl_engine: bridle.Engine, guess: bool) -> None:
    net = ControlNetModel.from_pretrained(xl_folder / "controlnet")
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(xl_folder, controlnet=[net, net])
    images = [picture(1), picture(2)]
    scales = [0.7, 0.4]
    theirs = diffusers_latents(pipeline, image=images, controlnet_conditioning_scale=scales, guess_mode=guess)
    pairs = zip(images, scales, strict=True)
    controls = [bridle.ControlNet("controlnet", image, scale=scale, guess_mode=guess) for image, scale in pairs]
    assert rel_l2(latents(xl_engine, controls=controls), theirs) <= TOLERANCE


@pytest.mark.parametrize("inpaint", [False, True])
def test_controlnet_with_a_picture(folder: Path, engine: bridle.Engine, inpaint: bool) -> None:
    net = ControlNetModel.from_pretrained(folder / "controlnet")
    kind = StableDiffusionControlNetInpaintPipeline if inpaint else StableDiffusionControlNetImg2ImgPipeline
    pipeline = kind.from_pretrained(folder, controlnet=net)
    arguments = {"mask_image": MASK} if inpaint else {}
    theirs = diffusers_latents(
        pipeline,
        image=picture(1),
        control_image=picture(2),
        strength=0.7,
        controlnet_conditioning_scale=0.6,
        width=128,
        height=128,
        **arguments,
    )
    mask = {"mask_image": half_mask()} if inpaint else {}
    controls = [bridle.ControlNet("controlnet", picture(2), scale=0.6)]
    assert rel_l2(latents(engine, image=picture(1), strength=0.7, controls=controls, **mask), theirs) <= TOLERANCE


def save_adapter(target: Path, seed: int, **fields: object) -> T2IAdapter:
    adapter = T2IAdapter(**fields)
    randomise(adapter, seed)
    adapter.save_pretrained(target)
    return adapter


def test_light_adapter(folder: Path, engine: bridle.Engine, tmp_path: Path) -> None:
    light = {"adapter_type": "light_adapter", "channels": [32, 64, 64], "num_res_blocks": 2}
    adapter = save_adapter(tmp_path / "light", 1, **light)
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(folder, adapter=adapter)
    theirs = diffusers_latents(pipeline, image=picture(), adapter_conditioning_scale=0.7, height=128, width=128)
    controls = [bridle.T2IAdapter(tmp_path / "light", picture(), scale=0.7)]
    assert rel_l2(latents(engine, controls=controls), theirs) <= TOLERANCE
    assert rel_l2(latents(engine), theirs) > 1e-2


def test_several_adapters_of_one_and_three_channels(folder: Path, engine: bridle.Engine, tmp_path: Path) -> None:
    fields = {"adapter_type": "full_adapter", "channels": [32, 64, 64, 64]}
    grey = save_adapter(tmp_path / "grey", 2, in_channels=1, **fields)
    colour = save_adapter(tmp_path / "colour", 3, in_channels=3, **fields)
    pipeline = StableDiffusionAdapterPipeline.from_pretrained(folder, adapter=MultiAdapter([grey, colour]))
    sketch = picture(1).convert("L")
    scales = [0.7, 0.4]
    images = [sketch, picture(2)]
    theirs = diffusers_latents(pipeline, image=images, adapter_conditioning_scale=scales, height=128, width=128)
    controls = [
        bridle.T2IAdapter(tmp_path / "grey", sketch, scale=0.7),
        bridle.T2IAdapter(tmp_path / "colour", picture(2), scale=0.4),
    ]
    assert rel_l2(latents(engine, controls=controls), theirs) <= TOLERANCE
    assert rel_l2(latents(engine, controls=controls[::-1]), theirs) <= TOLERANCE
    assert rel_l2(latents(engine, controls=controls[:1]), theirs) > 1e-2


def test_tiny_autoencoder(folder: Path, tmp_path: Path) -> None:
    own = with_tiny_autoencoder(folder, tmp_path / "model")
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(own)
    arguments = {"image": picture(), "strength": 0.6}
    pixels = diffusers_latents(pipeline, output_type="np", **arguments)
    engine = bridle.load(own)
    assert rel_l2(latents(engine, **arguments), diffusers_latents(pipeline, **arguments)) <= TOLERANCE
    result = engine.sample(request(output_type="np", **arguments))
    assert isinstance(result, bridle.Result)
    assert abs(result.images - pixels).max() < 0.01 and pixels.std() > 0.05


def test_several_images_with_generators_of_their_own(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    theirs = diffusers_latents(pipeline, num_images_per_prompt=3, generator=generators)
    assert rel_l2(latents(engine, num_images=3, seed=5), theirs) <= TOLERANCE


def test_injected_noise(folder: Path, engine: bridle.Engine) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    assert rel_l2(latents(engine, latents=noise), diffusers_latents(pipeline, latents=noise.clone())) <= TOLERANCE


def test_long_prompts_are_their_chunks_side_by_side(folder: Path, engine: bridle.Engine) -> None:
    """diffusers takes the same features as `prompt_embeds`: each chunk of 75 tokens encoded alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    words = [f"{'red' if k % 3 else 'blue'} x{k}" for k in range(40)]
    long = " ".join(words)
    ids = pipeline.tokenizer(long, add_special_tokens=False).input_ids
    assert len(ids) > 150
    pieces = [ids[start : start + 75] for start in range(0, len(ids), 75)]
    end = pipeline.tokenizer.eos_token_id
    rows = [[pipeline.tokenizer.bos_token_id, *piece, *[end] * (76 - len(piece))] for piece in pieces]
    with torch.no_grad():
        hidden = pipeline.text_encoder(torch.tensor(rows))[0]
    embeds = hidden.reshape(1, -1, hidden.shape[-1])
    theirs = diffusers_latents(pipeline, prompt=None, negative_prompt=None, prompt_embeds=embeds, guidance_scale=1.0)
    assert rel_l2(latents(engine, prompt=long, guidance_scale=1.0), theirs) <= TOLERANCE
    assert rel_l2(latents(engine, prompt=" ".join(words[:30]), guidance_scale=1.0), theirs) > TOLERANCE
