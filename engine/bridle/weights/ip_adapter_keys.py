"""The names that files of IP-Adapters give to their tensors, in the official format and in that of diffusers.

Ours are those of diffusers for the image projection, and `<site>.to_{k,v}.weight` for the attention, as the base U-Net
calls its own keys and values: `unet.cross_kv` reads the adapter's weights as it reads the base's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, cat

from bridle.networks.configs import UNetConfig
from bridle.networks.unet import attention_sites

Shapes = Mapping[str, tuple[int, ...]]

OFFICIAL_PROJECTION, OFFICIAL_ATTENTION = "image_proj.", "ip_adapter."
DIFFUSERS_PROJECTION = "encoder_hid_proj.image_projection_layers."
LINEAR = {"image_embeds": "proj"}
MLP = {"ff.net.0.proj": "proj.0", "ff.net.2": "proj.2", "norm": "proj.3"}
RESAMPLER_LAYER = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_k": "0.to_kv",
    "attn.to_v": "0.to_kv",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
"""Module paths whose official names differ from those of diffusers, in the projections and in a resampler's layer."""


@dataclass(frozen=True, slots=True)
class FileKeys:
    """Our name of a tensor -> its name in a file.

    prefix: of the projection. modules: its module paths that the file calls otherwise. attention: names of the rest.
    """

    prefix: str
    modules: Mapping[str, str]
    attention: Mapping[str, str]

    def key(self, name: str) -> str:
        """The name in the file."""
        if name in self.attention:
            return self.attention[name]
        module, _, parameter = name.rpartition(".")
        return f"{self.prefix}{self.modules[module]}.{parameter}" if module in self.modules else self.prefix + name


def official_keys(unet: UNetConfig, modules: Mapping[str, str]) -> FileKeys:
    """Of tencent-ailab/IP-Adapter: `image_proj.*` and `ip_adapter.N.to_{k,v}_ip.weight`.

    N counts the attentions of the U-Net, self-attentions included, in the order encoder, decoder, middle block
    (controls.md 0.3). modules: LINEAR, MLP or `resampler_modules`.
    """
    sites = sorted(attention_sites(unet), key=lambda site: site.name.startswith("mid_block"))
    attention = {
        f"{site.name}.{part}.weight": f"{OFFICIAL_ATTENTION}{2 * index + 1}.{part}_ip.weight"
        for index, site in enumerate(sites)
        for part in ("to_k", "to_v")
    }
    return FileKeys(OFFICIAL_PROJECTION, modules, attention)


def diffusers_keys(unet: UNetConfig, index: int) -> FileKeys:
    """Of a U-Net that diffusers saved with IP-Adapters loaded; index: which of them."""
    attention = {
        f"{site.name}.{part}.weight": f"{site.name}.processor.{part}_ip.{index}.weight"
        for site in attention_sites(unet)
        for part in ("to_k", "to_v")
    }
    return FileKeys(f"{DIFFUSERS_PROJECTION}{index}.", {}, attention)


def resampler_modules(depth: int) -> dict[str, str]:
    """Module paths of a resampler of `depth` layers."""
    return {
        f"layers.{index}.{ours}": f"layers.{index}.{theirs}"
        for index in range(depth)
        for ours, theirs in RESAMPLER_LAYER.items()
    }


def attention_shapes(unet: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Shape [heads * dim, cross_attention_dim] of the adapter's keys and values at every site, under our names."""
    return {
        f"{site.name}.{part}.weight": (site.heads * site.dim, unet.cross_attention_dim)
        for site in attention_sites(unet)
        for part in ("to_k", "to_v")
    }


def file_shapes(shapes: Shapes, keys: FileKeys) -> dict[str, tuple[int, ...]]:
    """What the file must hold. Tensors that share a name there lie one after the other (a resampler's keys and values)."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        before = expected.get(keys.key(name), (0,))[0]
        expected[keys.key(name)] = (before + shape[0], *shape[1:])
    return expected


def from_file(tensors: Mapping[str, Tensor], shapes: Shapes, keys: FileKeys) -> dict[str, Tensor]:
    """The tensors of a file of `file_shapes` under our names. Views, nothing is copied."""
    read: dict[str, int] = {}
    ours: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        begin = read.get(keys.key(name), 0)
        read[keys.key(name)] = begin + shape[0]
        ours[name] = tensors[keys.key(name)][begin : begin + shape[0]]
    return ours


def to_file(tensors: Mapping[str, Tensor], keys: FileKeys) -> dict[str, Tensor]:
    """The way back."""
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(keys.key(name), []).append(tensor)
    return {key: cat(pieces) for key, pieces in parts.items()}
