"""IP-Adapter against vectors computed with the official code (tests/goldens/ip-adapter)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from bridle.networks import unet
from bridle.networks.configs import LinearProjectionConfig, UNetConfig
from bridle.networks.image_projection import project_image, tensor_shapes
from bridle.rows import ContextPiece, ContextSegment, Rows, SiteTerms
from bridle.weights import ip_adapter_keys
from bridle_kernels.attention import Piece, Segment
from bridle_kernels.ops import ReferenceOps

CASE = Path(__file__).parents[1] / "goldens" / "ip-adapter" / "public-base"
OPS = ReferenceOps()

pytestmark = pytest.mark.usefixtures("no_grad")


def weighted(tokens: ContextPiece, weight: float) -> ContextSegment:
    return ContextSegment((tokens,), sites=(SiteTerms(weight=weight),) * len(tokens.sites))


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Golden:
    """The case: configuration, weights under our names, inputs, outputs with the distance that each allows."""

    fields: dict
    config: UNetConfig
    projection_config: LinearProjectionConfig
    unet: Mapping[str, Tensor]
    projection: Mapping[str, Tensor]
    attention: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @classmethod
    def read(cls) -> "Golden":
        fields = json.loads((CASE / "config.json").read_text())
        config = UNetConfig.from_dict(fields["unet"], "unet/config.json")
        stored = load_file(CASE / "weights.safetensors")
        width = fields["projection"]["clip_embeddings_dim"]
        projection = LinearProjectionConfig(
            image_dim=width, context_dim=config.cross_attention_dim, tokens=fields["num_tokens"]
        )
        adapter, keys = under(stored, "ip_file."), ip_adapter_keys.official_keys(config, ip_adapter_keys.LINEAR)
        shapes = (tensor_shapes(projection), ip_adapter_keys.attention_shapes(config))
        whole = ip_adapter_keys.file_shapes({**shapes[0], **shapes[1]}, keys)
        assert whole == {key: tuple(tensor.shape) for key, tensor in adapter.items()}
        parts = (ip_adapter_keys.from_file(adapter, part, keys) for part in shapes)
        inputs, outputs = (load_file(CASE / f"{part}.safetensors") for part in ("inputs", "outputs"))
        return cls(fields, config, projection, under(stored, "unet."), *parts, inputs, outputs)

    def close(self, got: Tensor, name: str) -> None:
        wanted = self.outputs[name]
        assert got.shape == wanted.shape, name
        assert float((got - wanted).abs().max()) <= self.fields["accept"][name], name

    def tokens(self) -> Tensor:
        return project_image(OPS, self.projection, self.projection_config, self.inputs["image_features"][:, None])

    def eps(self, *context: ContextSegment, ops: ReferenceOps = OPS) -> Tensor:
        timestep = torch.full((2,), float(self.fields["timestep"]))
        time = unet.time_table(ops, self.unet, self.config, timestep)
        return unet.unet(ops, self.unet, self.config, Rows(self.inputs["sample"], time, context), {})

    def site(self, name: str, segments: Sequence[Segment]) -> Tensor:
        """One cross-attention on the golden's own input."""
        heads = next(site.heads for site in unet.attention_sites(self.config) if site.name == name)
        (q,) = OPS.project_heads(self.outputs[f"{name}.in"], [self.unet[f"{name}.to_q.weight"]], heads)
        weight, bias = self.unet[f"{name}.to_out.0.weight"], self.unet[f"{name}.to_out.0.bias"]
        return OPS.linear(OPS.attention(q, segments), weight, bias)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden.read()


def test_image_tokens(golden: Golden) -> None:
    """Row 0 is the unconditional one: a zero embedding, whose tokens are not zero."""
    tokens = golden.tokens()
    golden.close(tokens, "image_tokens")
    assert not golden.inputs["image_features"][0].any() and tokens[0].abs().max() > 0.1


def test_the_whole_u_net(golden: Golden) -> None:
    kv = (
        unet.cross_kv(OPS, golden.unet, golden.config, golden.inputs["text"]),
        unet.cross_kv(OPS, golden.attention, golden.config, golden.tokens()),
    )
    text, image = (ContextPiece(sites) for sites in kv)
    scaled = {scale: weighted(image, scale) for scale in (golden.fields["scale"], 0.0)}
    golden.close(golden.eps(ContextSegment((text,)), scaled[golden.fields["scale"]]), "eps")
    golden.close(golden.eps(ContextSegment((text,)), scaled[0.0]), "eps_scale0")
    golden.close(golden.eps(ContextSegment((text,))), "eps_text_only")
    joint = golden.eps(ContextSegment((text, image)))
    assert float((joint - golden.outputs["eps"]).abs().max()) > 1e-2, "one softmax over both is another function"


def test_what_a_site_returns(golden: Golden) -> None:
    """`to_out(text + scale * image)` from the golden's own input of a site, and of the text alone (`CNAttnProcessor`)."""
    sources = ((golden.inputs["text"], golden.unet), (golden.tokens(), golden.attention))
    kv = [unet.cross_kv(OPS, weights, golden.config, tokens) for tokens, weights in sources]
    for name in golden.fields["sites"]:
        index = site_index(golden, name)
        text, image = (Segment((Piece(sites[index].k, sites[index].v),)) for sites in kv)
        golden.close(golden.site(name, (text, replace(image, weight=golden.fields["scale"]))), f"{name}.out")
    first = golden.fields["sites"][0]
    golden.close(golden.site(first, (Segment((Piece(kv[0][0].k, kv[0][0].v),)),)), "controlnet_processor.out")


def test_maps_of_the_image_tokens(golden: Golden) -> None:
    """The golden keeps the maps of its last run with image tokens, that of scale 0, so that the queries are of that run."""
    text = ContextPiece(unet.cross_kv(OPS, golden.unet, golden.config, golden.inputs["text"]))
    image = ContextPiece(unet.cross_kv(OPS, golden.attention, golden.config, golden.tokens()))
    ops = CrossAttentionOps()
    golden.eps(ContextSegment((text,)), weighted(image, 0.0), ops=ops)
    for name in golden.fields["sites"]:
        index = site_index(golden, name)
        golden.close(image_map(ops.queries[index], image.sites[index].k), f"{name}.image_map")


class CrossAttentionOps(ReferenceOps):
    """Reference ops that keep the queries of every attention with two segments."""

    def __init__(self) -> None:
        self.queries: list[Tensor] = []

    def attention(self, q: Tensor, segments: Sequence[Segment], **options: Any) -> Tensor:
        """The attention itself."""
        if len(segments) == 2:
            self.queries.append(q)
        return OPS.attention(q, segments, **options)


def site_index(golden: Golden, name: str) -> int:
    return [site.name for site in unet.attention_sites(golden.config)].index(name)


def image_map(q: Tensor, k: Tensor) -> Tensor:
    """Weights of the tokens [rows * heads, N, T]: what the attention makes of values that are unit vectors."""
    rows, tokens, heads, dim = k.shape
    unit = torch.eye(tokens, dim)[None, :, None].expand(rows, tokens, heads, dim)
    out = OPS.attention(q, (Segment((Piece(k, unit),)),))
    return out.unflatten(2, (heads, dim))[..., :tokens].transpose(1, 2).flatten(0, 1)
