"""The text encoders against transformers: hidden states, layers skipped, pooling."""

import pytest
import torch
from tiny_networks import randomise, relative_l2
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from bridle.networks import text
from bridle.networks.configs import TextConfig
from bridle_kernels.ops import Ops, ReferenceOps

TOLERANCE = 1e-5
OPS = ReferenceOps()
FIELDS = {
    "vocab_size": 99,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 17,
    "projection_dim": 20,
    "eos_token_id": 98,
}
WITH_PROJECTION = {"architectures": ["CLIPTextModelWithProjection"]}

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def make_ids(seed: int) -> Tensor:
    ids = torch.randint(0, 97, (3, 17), generator=torch.Generator().manual_seed(seed))
    ids[0, 6:] = 98
    ids[1, 12] = 98
    ids[2, 16] = 98
    return ids


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers dropped the `text_model.` of the bare encoder's names; files have it."""
    if any(name.startswith("text_model.") for name in weights):
        return weights
    return {f"text_model.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hidden_states(activation: str, ops: Ops) -> None:
    fields = CLIPTextConfig(**FIELDS, hidden_act=activation)
    model = CLIPTextModel(fields)
    weights = published(dict(randomise(model, 1)))
    config = TextConfig.from_dict(fields.to_dict(), "text_encoder/config.json")
    assert text.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    wanted = model(make_ids(2), output_hidden_states=True)
    got = text.clip_text(ops, weights, config, make_ids(2))
    assert relative_l2(got.hidden, wanted.last_hidden_state) <= TOLERANCE
    assert relative_l2(got.pooled, wanted.pooler_output) <= TOLERANCE
    for skip in range(3):
        raw = text.clip_text(ops, weights, config, make_ids(2), skip=skip, final_norm=False)
        assert relative_l2(raw.hidden, wanted.hidden_states[-1 - skip]) <= TOLERANCE
        assert torch.equal(raw.pooled, got.pooled)


def test_penultimate_layer_with_final_norm(ops: Ops) -> None:
    """OpenCLIP's form, which diffusers' folders express by leaving the last layer out."""
    fields = CLIPTextConfig(**FIELDS)
    model = CLIPTextModel(fields)
    weights = published(dict(randomise(model, 3)))
    config = TextConfig.from_dict(fields.to_dict(), "f")
    shorter = TextConfig.from_dict({**fields.to_dict(), "num_hidden_layers": 2}, "f")
    skipped = text.clip_text(ops, weights, config, make_ids(4), skip=1)
    assert torch.equal(skipped.hidden, text.clip_text(ops, weights, shorter, make_ids(4)).hidden)


@pytest.mark.parametrize("eos", [98, 2])
def test_projected_pooling(eos: int, ops: Ops) -> None:
    fields = CLIPTextConfig(**{**FIELDS, "eos_token_id": eos})
    model = CLIPTextModelWithProjection(fields)
    weights = dict(randomise(model, 5))
    config = TextConfig.from_dict({**fields.to_dict(), **WITH_PROJECTION}, "f")
    assert text.tensor_shapes(config) == {name: tuple(t.shape) for name, t in weights.items()}
    got = text.clip_text(ops, weights, config, make_ids(6))
    assert relative_l2(got.pooled, model(make_ids(6)).text_embeds) <= TOLERANCE


def test_later_tokens_do_not_reach_earlier_ones(ops: Ops) -> None:
    fields = CLIPTextConfig(**FIELDS)
    weights = published(dict(randomise(CLIPTextModel(fields), 7)))
    config = TextConfig.from_dict(fields.to_dict(), "f")
    ids = make_ids(8)
    changed = ids.clone()
    changed[:, 9:] = 5
    before, after = (text.clip_text(ops, weights, config, i).hidden for i in (ids, changed))
    assert torch.allclose(before[:, :9], after[:, :9], atol=1e-6)
    assert relative_l2(before[:, 9:], after[:, 9:]) > 1e-2


def test_bad_arguments() -> None:
    fields = CLIPTextConfig(**FIELDS)
    weights = published(dict(randomise(CLIPTextModel(fields), 9)))
    config = TextConfig.from_dict(fields.to_dict(), "f")
    with pytest.raises(ValueError, match="skip is 3"):
        text.clip_text(OPS, weights, config, make_ids(1), skip=3)
    with pytest.raises(ValueError, match="18 tokens"):
        text.clip_text(OPS, weights, config, torch.zeros((1, 18), dtype=torch.int64))
