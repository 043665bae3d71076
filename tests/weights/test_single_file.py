"""Official single files: written from tiny folders through the key maps, read back, every tensor the same."""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import bridle
from bridle.architectures import ARCHITECTURES
from bridle.errors import ModelLoadError, RequestError
from bridle.weights import Model, key_maps, load_adapter, load_controlnet, load_model
from bridle.weights.single_file import (
    SD1_TEXT,
    SD2_TEXT,
    UNET,
    VAE,
    XL_TEXT,
    XL_TEXT_2,
    load_single_file,
)

CPU = torch.device("cpu")


def official(model: Model, texts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The model as an official checkpoint; texts: prefix -> text encoder in the format of that prefix."""
    tensors = key_maps.to_official(model.unet.tensors, key_maps.unet_names(model.unet.config), UNET)
    autoencoder = key_maps.to_official(model.vae.tensors, key_maps.vae_names(model.vae.config), VAE)
    for key, tensor in autoencoder.items():
        convolution = ".attn_1." in key and tensor.ndim == 2
        tensors[key] = tensor[:, :, None, None] if convolution else tensor
    for prefix, text in texts.items():
        tensors |= {prefix + key: tensor for key, tensor in text.items()}
    return tensors


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_sd1(original: Path, tmp_path: Path) -> None:
    model = load_model(original)
    extras = {
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(2),
        "alphas_cumprod": torch.ones(1000),
        f"{SD1_TEXT}text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    tensors = official(model, {SD1_TEXT: model.text_encoders[0].tensors}) | extras
    file = write(tmp_path / "sd1.safetensors", tensors)
    read = load_single_file(file, None, CPU, original / "tokenizer", architecture=ARCHITECTURES["tiny"])
    assert read.architecture == "sd1"
    for one, other in ((read.unet, model.unet), (read.vae, model.vae), (read.text_encoders[0], model.text_encoders[0])):
        assert_same(one.tensors, other.tensors)
    request = bridle.Request("a red circle", num_inference_steps=2, output_type="latent")
    from bridle.backends.reference import ReferenceBackend

    results = [
        bridle.Engine(ReferenceBackend(m, CPU, torch.float32), original).sample(request).latents for m in (read, model)
    ]
    assert torch.equal(*results)


def test_sdxl(original_xl: Path, tmp_path: Path) -> None:
    model = load_model(original_xl)
    second = model.text_encoders[1]
    texts = {
        XL_TEXT: model.text_encoders[0].tensors,
        XL_TEXT_2: key_maps.transformers_to_open_clip(second.tensors, second.config.layers),
    }
    file = write(tmp_path / "xl.safetensors", official(model, texts))
    read = load_single_file(file, None, CPU, original_xl / "tokenizer", architecture=ARCHITECTURES["tiny-xl"])
    assert read.architecture == "sdxl" and read.force_zeros_for_empty_prompt
    for one, other in zip(
        (read.unet, read.vae, *read.text_encoders), (model.unet, model.vae, *model.text_encoders), strict=True
    ):
        assert_same(one.tensors, other.tensors)


@pytest.mark.parametrize(
    ("metadata", "given", "want"),
    [
        (None, None, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, None, "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, "v_prediction", "v_prediction"),
    ],
)
def test_sd2_leaves_out_the_last_layer(
    original: Path, tmp_path: Path, metadata: dict[str, str] | None, given: str | None, want: str
) -> None:
    model = load_model(original)
    encoder = model.text_encoders[0]
    full = key_maps.transformers_to_open_clip(encoder.tensors, encoder.config.layers)
    file = write(
        tmp_path / "sd2.safetensors", official(model, {SD2_TEXT: {**full, "logit_scale": torch.ones(1)}}), metadata
    )
    tiny = ARCHITECTURES["tiny"]
    text = {**tiny.text_encoders[0], "num_hidden_layers": encoder.config.layers - 1}
    short = replace(tiny, text_encoders=(text,))
    read = load_single_file(file, None, CPU, original / "tokenizer", given, architecture=short)
    assert read.scheduler["prediction_type"] == want and read.architecture == "sd2"
    with pytest.raises(ModelLoadError, match="stranger"):
        strange = write(tmp_path / "m.safetensors", official(model, {SD2_TEXT: {**full, "stranger": torch.ones(1)}}))
        load_single_file(strange, None, CPU, original / "tokenizer", given, architecture=short)
    kept = read.text_encoders[0].tensors
    assert_same(kept, {key: tensor for key, tensor in encoder.tensors.items() if ".layers.2." not in key})
    assert read.tokenizers[0].pad_token == "!"


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("fixture", ["original", "original_xl"])
def test_controlnet(fixture: str, prefix: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(fixture)
    base = load_model(folder)
    net = load_controlnet(folder / "controlnet", dtype=None, device=CPU, base=base)
    names = key_maps.controlnet_names(net.config)
    file = write(tmp_path / "canny.safetensors", key_maps.to_official(net.tensors, names, prefix))
    read = load_controlnet(file, dtype=None, device=CPU, base=base)
    assert read.config == net.config
    assert_same(read.tensors, net.tensors)
    plain = write(tmp_path / "diffusers.safetensors", net.tensors)
    assert_same(load_controlnet(plain, dtype=None, device=CPU, base=base).tensors, net.tensors)


def test_strangers_in_a_controlnet_file(original: Path, tmp_path: Path) -> None:
    """A full dump may carry the base model beside `control_model.`; nothing else is passed over."""
    base = load_model(original)
    net = load_controlnet(original / "controlnet", dtype=None, device=CPU, base=base)
    names = key_maps.controlnet_names(net.config)
    dump = key_maps.to_official(net.tensors, names, "control_model.") | {
        f"{UNET}input_blocks.0.0.weight": torch.ones(1)
    }
    load_controlnet(write(tmp_path / "c.safetensors", dump), dtype=None, device=CPU, base=base)
    for broken in (
        {**dump, "control_model.stranger": torch.ones(1)},
        {**dump, "stranger": torch.ones(1)},
        {**key_maps.to_official(net.tensors, names), "stranger": torch.ones(1)},
        {**net.tensors, "stranger": torch.ones(1)},
        {key: tensor for key, tensor in dump.items() if "zero_convs.3" not in key},
    ):
        with pytest.raises(ModelLoadError, match=r"c\.safetensors"):
            load_controlnet(write(tmp_path / "c.safetensors", broken), dtype=None, device=CPU, base=base)


def test_difference_controlnet(original: Path, tmp_path: Path) -> None:
    base = load_model(original)
    net = load_controlnet(original / "controlnet", dtype=None, device=CPU, base=base)
    less = {key: tensor - base.unet.tensors.get(key, torch.zeros_like(tensor)) for key, tensor in net.tensors.items()}
    tensors = key_maps.to_official(less, key_maps.controlnet_names(net.config), "control_model.")
    file = write(tmp_path / "difference_shuffle.safetensors", {**tensors, "difference": torch.zeros(1)})
    read = load_controlnet(file, dtype=None, device=CPU, base=base)
    assert read.config.global_pool
    for key, tensor in net.tensors.items():
        assert torch.allclose(read.tensors[key], tensor, atol=1e-6), key


@pytest.mark.parametrize("prefix", ["adapter.", ""])
@pytest.mark.parametrize("fixture", ["original", "original_xl"])
def test_adapter(fixture: str, prefix: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(fixture)
    base = load_model(folder)
    adapter = load_adapter(folder / "t2i-adapter", dtype=None, device=CPU, base=base)
    tensors = key_maps.to_official(adapter.tensors, key_maps.adapter_names(adapter.config), prefix)
    read = load_adapter(write(tmp_path / "a.safetensors", tensors), dtype=None, device=CPU, base=base)
    assert read.config == adapter.config
    assert_same(read.tensors, adapter.tensors)
    plain = load_adapter(write(tmp_path / "d.safetensors", adapter.tensors), dtype=None, device=CPU, base=base)
    assert plain.config == adapter.config


@pytest.mark.parametrize(("channels", "want"), [(9, "epsilon"), (5, "epsilon")])
def test_inpainting_and_depth_checkpoints(original: Path, tmp_path: Path, channels: int, want: str) -> None:
    model = load_model(original)
    encoder = model.text_encoders[0]
    wide = {**model.unet.tensors, "conv_in.weight": torch.randn(32, channels, 3, 3)}
    wider = replace(model, unet=replace(model.unet, tensors=wide))
    text = key_maps.transformers_to_open_clip(encoder.tensors, encoder.config.layers)
    tensors = official(wider, {SD2_TEXT: text}) | {"depth_model.model.weight": torch.ones(1)}
    file = write(tmp_path / "m.safetensors", tensors)
    tiny = ARCHITECTURES["tiny"]
    short = replace(tiny, text_encoders=({**tiny.text_encoders[0], "num_hidden_layers": encoder.config.layers - 1},))
    read = load_single_file(file, None, CPU, original / "tokenizer", architecture=short)
    assert read.unet.config.in_channels == channels and read.scheduler["prediction_type"] == want
    assert_same(read.unet.tensors, wide)


@pytest.mark.parametrize(
    ("metadata", "given", "want"),
    [
        (None, None, "epsilon"),
        ({"modelspec.prediction_type": "v"}, None, "v_prediction"),
        (None, "v_prediction", "v_prediction"),
    ],
)
def test_sd1_and_xl_finetunes_for_velocity(
    original: Path, tmp_path: Path, metadata: dict[str, str] | None, given: str | None, want: str
) -> None:
    model = load_model(original)
    file = write(tmp_path / "m.safetensors", official(model, {SD1_TEXT: model.text_encoders[0].tensors}), metadata)
    read = load_single_file(file, None, CPU, original / "tokenizer", given, architecture=ARCHITECTURES["tiny"])
    assert read.scheduler["prediction_type"] == want


def test_arguments_that_nothing_would_read(original: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "m.safetensors", {"x": torch.ones(1)})
    for path, field, value in (
        (original, "prediction_type", "epsilon"),
        (file, "prediction_type", "velocity"),
        (file, "variant", "fp16"),
    ):
        with pytest.raises(RequestError) as caught:
            load_model(path, **{field: value})
        assert caught.value.field == field


def test_bad_adapter_files(original: Path, tmp_path: Path) -> None:
    base = load_model(original)
    adapter = load_adapter(original / "t2i-adapter", dtype=None, device=CPU, base=base)
    whole = key_maps.to_official(adapter.tensors, key_maps.adapter_names(adapter.config))
    light = {"body.0.in_conv.weight": torch.ones(8, 192, 1, 1), "body.0.body.0.block1.weight": torch.ones(1)}
    for broken in (
        {**whole, "conv_in.weight": torch.ones(3)},
        {**whole, "conv_in.weight": torch.ones(32, 7, 3, 3)},
        {key: value for key, value in whole.items() if key != "body.2.block2.weight"},
        {**whole, "stranger": torch.ones(1)},
        light,
        {**light, "body": torch.ones(1)},
        {"stranger": torch.ones(1)},
        dict(base.unet.tensors),
    ):
        with pytest.raises(ModelLoadError, match=r"a\.safetensors"):
            load_adapter(write(tmp_path / "a.safetensors", broken), dtype=None, device=CPU, base=base)


def test_bad_single_files(original: Path, tmp_path: Path) -> None:
    model = load_model(original)
    whole = official(model, {SD1_TEXT: model.text_encoders[0].tensors})

    def load(tensors: Mapping[str, Tensor]) -> Model:
        file = write(tmp_path / "m.safetensors", tensors)
        return load_single_file(file, None, CPU, original / "tokenizer", architecture=ARCHITECTURES["tiny"])

    first = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    for broken in (
        {key: tensor for key, tensor in whole.items() if key != first},
        {**whole, first: whole[first][:-1]},
        {**whole, f"{UNET}input_blocks.0.0.weight": torch.ones(3)},
        {**whole, f"{UNET}input_blocks.99.weight": torch.ones(1)},
        {**whole, "stranger": torch.ones(1)},
        {**whole, f"{VAE}stranger": torch.ones(1)},
        {**whole, f"{SD1_TEXT}stranger": torch.ones(1)},
        {key: tensor for key, tensor in whole.items() if key.startswith(UNET)},
        dict(model.unet.tensors),
    ):
        with pytest.raises(ModelLoadError, match=r"m\.safetensors"):
            load(broken)


def test_a_tokenizer_must_come_from_somewhere(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridle.weights import tokenizers

    monkeypatch.setattr(tokenizers, "_cached", lambda: None)
    monkeypatch.setattr(tokenizers, "_from_open_clip", lambda: None)
    with pytest.raises(ModelLoadError, match="tokenizer=FOLDER"):
        tokenizers.single_file_tokenizers(None, "sd15")


def test_tokenizer_from_the_cache_or_open_clip(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tokenizer=` first, then the cached repository, then the list of merges that open_clip ships."""
    from huggingface_hub import constants

    from bridle.weights import tokenizers

    letters = [chr(97 + index) for index in range(26)]
    pairs = [first + second for first in letters for second in letters]
    merges = [" ".join(pair) for pair in pairs] + [f"{first} {second}" for first in pairs for second in pairs]
    package = tmp_path / "packages" / "open_clip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('not to be imported')")
    listing = "\n".join(["version", *merges[: 49152 - 258], "ignored line"])
    (package / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(listing.encode()))
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (clip,) = tokenizers.single_file_tokenizers(None, "sd15")
    symbols = tokenizers.byte_symbols()
    assert (
        clip.convert_tokens_to_ids("a</w>") == 256 + symbols.index("a")
        and clip.convert_tokens_to_ids("ab") == 513
        and len(clip) == 49408
    )
    assert clip("abab", add_special_tokens=False).input_ids != clip("a b a b", add_special_tokens=False).input_ids
    assert (clip.bos_token, clip.eos_token, clip.pad_token) == ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    snapshot = tmp_path / "hub" / "models--openai--clip-vit-large-patch14" / "snapshots" / ("0" * 40)
    shutil.copytree(original / "tokenizer", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    first, second = tokenizers.single_file_tokenizers(None, "sdxl")
    assert len(first) == len(second) == 514 and (first.pad_token, second.pad_token) == ("<|endoftext|>", "!")
    with pytest.raises(ModelLoadError, match="vocab"):
        tokenizers.single_file_tokenizers(tmp_path / "nothing", "sd15")


def test_light_adapter_is_recognised() -> None:
    from bridle.weights.control_files import load_adapter_file

    golden = Path(__file__).parents[1] / "goldens/t2i-adapter/public-light/weights.safetensors"
    config = load_adapter_file(golden, torch.float32, CPU).config
    assert config.kind == "light_adapter" and len(load_file(golden)) > 0
