"""IP-Adapters (arXiv 2308.06721): base, plus, plus-face and full-face, for SD 1.x, 2.x and XL. Safetensors only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bridle.errors import ModelLoadError
from bridle.networks import image_projection
from bridle.networks.configs import (
    ImageProjectionConfig,
    LinearProjectionConfig,
    MlpProjectionConfig,
    ResamplerConfig,
)
from bridle.networks.configs.fields import MAX_DEPTH
from bridle.networks.configs.image_projection import RESAMPLER_HEAD_DIM
from bridle.weights import ip_adapter_keys as names
from bridle.weights.folder import checked, confined
from bridle.weights.image_encoder import check_image_encoder, find_image_encoder, load_image_encoder
from bridle.weights.model import Component, IPAdapter, Model
from bridle.weights.safetensors_file import read_tensors


def load_ip_adapter_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    base: Model,
    image_encoder: Path | None,
    loaded: Iterable[IPAdapter],
) -> IPAdapter:
    """Loads a file in the official or diffusers' format and its image encoder. Raises ModelLoadError.

    image_encoder: its folder; None looks for it (`image_encoder.find_image_encoder`). loaded: adapters whose encoder is
    shared where it is the same folder.
    """
    projection, attention = _read(path, dtype, device, base)
    if image_encoder is None:
        folder = find_image_encoder(path, projection.config).resolve()
    else:
        folder = image_encoder.resolve()
        check_image_encoder(folder, projection.config, path.name)
    shared = (adapter.image_encoder for adapter in loaded if adapter.image_encoder_folder == folder)
    encoder = next(shared, None) or load_image_encoder(folder, dtype, device)
    return IPAdapter(projection, attention, encoder, folder)


def adapter_file(folder: Path, subfolder: str, weight_name: str | None) -> Path:
    """The adapter's file in a folder: the named one, or the only one there is. Raises ModelLoadError."""
    place = confined(folder, subfolder)
    if weight_name is not None:
        if Path(weight_name).name != weight_name or not weight_name.endswith(".safetensors"):
            problem = "is not the name of a .safetensors file; pickled adapters are not read, convert them"
            raise ModelLoadError(ascii(weight_name)[1:-1][:120], problem)
        return confined(folder, f"{subfolder}/{weight_name}" if subfolder else weight_name)
    files = sorted(file.name for file in place.glob("*.safetensors"))
    shown = subfolder or folder.name
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.ckpt") for file in place.glob(pattern))
        raise ModelLoadError(
            shown,
            f"has no .safetensors file{f', only {pickles[0]}: convert it' if pickles else ''}; name its subfolder",
        )
    if len(files) > 1:
        raise ModelLoadError(shown, f"has {len(files)} adapters ({', '.join(files[:4])}); name one (weight_name)")
    return confined(folder, f"{subfolder}/{files[0]}" if subfolder else files[0])


def _read(
    path: Path, dtype: torch.dtype | None, device: torch.device, base: Model
) -> tuple[Component[ImageProjectionConfig], Mapping[str, Tensor]]:
    """The projection and the attention's weights. A U-Net that was saved with the adapter in it may hold its own too."""
    file, unet = path.name, base.unet.config
    read = read_tensors(path, file, dtype, device)
    tensors = {key: tensor for key, tensor in read if key not in base.unet.tensors}
    stored = _Stored(file, tensors, _file_keys(tensors, base, file))
    config = _projection_config(stored)
    if config.context_dim != unet.cross_attention_dim:
        problem = f"gives tokens of width {config.context_dim}, the base model has {unet.cross_attention_dim}"
        raise ModelLoadError(file, problem)
    projection_shapes, attention_shapes = image_projection.tensor_shapes(config), names.attention_shapes(unet)
    whole = checked(tensors, names.file_shapes({**projection_shapes, **attention_shapes}, stored.keys), file)
    projection = Component(config, names.from_file(whole, projection_shapes, stored.keys), file)
    return projection, names.from_file(whole, attention_shapes, stored.keys)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a file holds, asked for under our names."""

    file: str
    tensors: Mapping[str, Tensor]
    keys: names.FileKeys

    def has(self, name: str) -> bool:
        return self.keys.key(name) in self.tensors

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor of so many dimensions, none of them empty. Raises ModelLoadError naming it."""
        key = self.keys.key(name)
        if key not in self.tensors:
            raise ModelLoadError(self.file, "is missing", key)
        shape = tuple(self.tensors[key].shape)
        if len(shape) != dimensions or 0 in shape:
            raise ModelLoadError(self.file, f"has shape {list(shape)}, wants {dimensions} dimensions", key)
        return shape

    def depth(self) -> int:
        """Number of layers of a resampler."""
        return _depth(self.tensors, self.keys.prefix)


def _file_keys(tensors: Mapping[str, Tensor], base: Model, file: str) -> names.FileKeys:
    unet = base.unet.config
    if any(key.startswith(names.DIFFUSERS_PROJECTION) for key in tensors):
        return names.diffusers_keys(unet, _only_index(tensors, file))
    prefix = names.OFFICIAL_PROJECTION
    if not any(key.startswith((prefix, names.OFFICIAL_ATTENTION)) for key in tensors):
        raise ModelLoadError(file, f"is no IP-Adapter: it has neither {prefix}* nor {names.DIFFUSERS_PROJECTION}*")
    _refuse_face_id(tensors, file)
    modules = names.MLP if f"{prefix}proj.3.weight" in tensors else names.LINEAR
    return names.official_keys(unet, {**modules, **names.resampler_modules(_depth(tensors, prefix))})


def _only_index(tensors: Mapping[str, Tensor], file: str) -> int:
    prefix = names.DIFFUSERS_PROJECTION
    indices = sorted({key[len(prefix) :].split(".")[0] for key in tensors if key.startswith(prefix)})
    if len(indices) != 1 or not indices[0].isdecimal():
        raise ModelLoadError(file, f"holds {len(indices)} adapters, wants one", f"{prefix}{indices[-1]}"[:120])
    return int(indices[0])


def _refuse_face_id(tensors: Mapping[str, Tensor], file: str) -> None:
    prefix = names.OFFICIAL_PROJECTION
    foreign = [key for key in tensors if "_lora." in key or key.startswith(f"{prefix}perceiver_resampler.")]
    if f"{prefix}norm.weight" in tensors:
        foreign += [key for key in tensors if key.startswith(f"{prefix}proj.0.")]
    if foreign:
        problem = "belongs to a FaceID adapter, which reads embeddings of a face recogniser: not supported"
        raise ModelLoadError(file, problem, foreign[0][:120])


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    start = f"{prefix}layers."
    return min(MAX_DEPTH, len({key[len(start) :].split(".")[0] for key in tensors if key.startswith(start)}))


def _projection_config(stored: _Stored) -> ImageProjectionConfig:
    if stored.has("latents"):
        return _resampler_config(stored)
    (context_dim,) = stored.shape("norm.weight", 1)
    if stored.has("ff.net.0.proj.weight"):
        image_dim = stored.shape("ff.net.0.proj.weight", 2)[1]
        return MlpProjectionConfig(image_dim=image_dim, context_dim=context_dim)
    rows, image_dim = stored.shape("image_embeds.weight", 2)
    tokens = max(1, rows // context_dim)
    return LinearProjectionConfig(image_dim=image_dim, context_dim=context_dim, tokens=tokens)


def _resampler_config(stored: _Stored) -> ResamplerConfig:
    _, tokens, width = stored.shape("latents", 3)
    inner = stored.shape("layers.0.attn.to_q.weight", 2)[0]
    if inner % RESAMPLER_HEAD_DIM:
        problem = f"has {inner} rows, wants a multiple of {RESAMPLER_HEAD_DIM}"
        raise ModelLoadError(stored.file, problem, stored.keys.key("layers.0.attn.to_q.weight"))
    return ResamplerConfig(
        image_dim=stored.shape("proj_in.weight", 2)[1],
        context_dim=stored.shape("norm_out.weight", 1)[0],
        tokens=tokens,
        width=width,
        mlp_width=stored.shape("layers.0.ff.1.net.0.proj.weight", 2)[0],
        heads=inner // RESAMPLER_HEAD_DIM,
        depth=stored.depth(),
    )
