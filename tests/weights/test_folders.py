"""Model folders as they are published: older names, half-precision variants, shards, optional parts, odd paths."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridle.weights import Model, load_model

VAE = "vae/diffusion_pytorch_model.safetensors"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def same(one: Model, other: Model) -> bool:
    pairs = zip((one.unet, one.vae, *one.text_encoders), (other.unet, other.vae, *other.text_encoders), strict=True)
    return all(
        a.tensors.keys() == b.tensors.keys() and all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)
        for a, b in pairs
    )


def test_autoencoders_with_the_older_names_of_attention(folder: Path) -> None:
    wanted = load_model(folder)
    tensors = load_file(folder / VAE)
    older = {}
    for key, tensor in tensors.items():
        for new, old in OLD.items():
            key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        older[key] = tensor
    assert sum(key not in tensors for key in older) == 16
    save_file(older, folder / VAE)
    assert same(load_model(folder), wanted)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_as_diffusers_and_transformers_write_them(folder: Path, variant: str | None) -> None:
    wanted = load_model(folder)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        whole = load_file(folder / part / f"{stem}.safetensors")
        (folder / part / f"{stem}.safetensors").unlink()
        names = sorted(whole)
        suffix = f".{variant}" if variant else ""
        files = {key: f"{stem}{suffix}-0000{1 + (index % 2)}-of-00002.safetensors" for index, key in enumerate(names)}
        for file in set(files.values()):
            save_file({key: whole[key] for key in names if files[key] == file}, folder / part / file)
        index = {"metadata": {"total_size": 1}, "weight_map": files}
        (folder / part / f"{stem}.safetensors.index{suffix}.json").write_text(json.dumps(index))
    assert same(load_model(folder, variant=variant), wanted)


def test_text_encoders_with_and_without_their_prefix(folder: Path) -> None:
    wanted, file = load_model(folder), folder / "text_encoder/model.safetensors"
    tensors = load_file(file)
    bare = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    assert bare.keys() != tensors.keys()
    save_file({**bare, "embeddings.position_ids": torch.arange(77)[None]}, file)
    assert same(load_model(folder), wanted)


def test_parts_that_are_not_used_may_be_listed_or_null(folder: Path) -> None:
    wanted, file = load_model(folder), folder / "model_index.json"
    index = json.loads(file.read_text())
    extra = {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    file.write_text(json.dumps({**index, **extra, "requires_safety_checker": False, "image_encoder": [None, None]}))
    assert same(load_model(folder), wanted)


@pytest.mark.parametrize("name", ["with spaces", "Modèle 模型", "a\nb", "x" * 200, "-dash", "%41"])
def test_a18_odd_paths(folder: Path, name: str) -> None:
    wanted = load_model(folder)
    assert same(load_model(folder.rename(folder.with_name(name))), wanted)
    assert same(load_model(f"{folder.with_name(name)}/"), wanted)
