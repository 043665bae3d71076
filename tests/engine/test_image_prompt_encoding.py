"""Image prompts encoded by a backend, against diffusers' pipelines with the same adapter file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from runs import picture, rel_l2
from torch import Tensor

from bridle.backends.reference import ReferenceBackend
from bridle.clip_images import clip_pixels
from bridle.networks.image_projection import ImageTokens
from bridle.new_model import write_new_model
from bridle.pictures import read_picture
from bridle.rows import ContextPiece, ContextSegment, Rows, SiteTerms
from bridle.weights import IPAdapter, load_ip_adapter, load_model

TOLERANCE = 1e-5
CPU = torch.device("cpu")
CASES = [(arch, kind) for arch in ("tiny", "tiny-xl") for kind in ("base", "plus", "full")]

pytestmark = pytest.mark.usefixtures("no_grad")


def weighted(tokens: ContextPiece, weight: float) -> ContextSegment:
    return ContextSegment((tokens,), sites=(SiteTerms(weight=weight),) * len(tokens.sites))


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


class Setup:
    """The same model with the same adapter in both engines."""

    def __init__(self, folder: Path) -> None:
        self.backend = ReferenceBackend(load_model(folder), CPU, torch.float32)
        where = {"subfolder": "ip-adapter", "weight_name": "ip-adapter.safetensors"}
        self.adapter: IPAdapter = load_ip_adapter(
            folder, dtype=torch.float32, device=CPU, base=self.backend.model, **where
        )
        self.pipeline = DiffusionPipeline.from_pretrained(folder)
        self.pipeline.load_ip_adapter(folder, **where)

    def ours(self, pictures: list[Image.Image]) -> ImageTokens:
        pixels = clip_pixels([read_picture("image", p) for p in pictures], self.adapter.image_encoder.config.image_size)
        return self.backend.encode_image_prompt(self.adapter, pixels)

    def features(self, pictures: list[Image.Image]) -> list[Tensor]:
        """diffusers' features [2, B, ...], unconditional first."""
        return self.pipeline.prepare_ip_adapter_image_embeds([pictures], None, CPU, 1, True)


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    arch, kind = request.param
    folder = tmp_path_factory.mktemp("model") / "model"
    write_new_model(arch, folder, seed=11, ip_adapter=kind)
    return Setup(folder)


def test_tokens(setup: Setup) -> None:
    pictures = [picture(1), picture(2, 90, 200), picture(3, 224, 224)]
    got = setup.ours(pictures)
    unconditional, conditional = setup.pipeline.unet.encoder_hid_proj(setup.features(pictures))[0]
    wide = (3, setup.adapter.tokens, setup.backend.model.unet.config.cross_attention_dim)
    assert tuple(got.conditional.shape) == tuple(got.unconditional.shape) == wide
    assert rel_l2(got.conditional, conditional) <= TOLERANCE
    assert rel_l2(got.unconditional, unconditional) <= TOLERANCE
    tokens = (*got.conditional, got.unconditional[0])
    for index, one in enumerate(tokens):
        assert all(rel_l2(one, other) > 1e-3 for other in tokens[:index])


def test_each_image_is_encoded_by_itself(setup: Setup) -> None:
    together = setup.ours([picture(1), picture(2)])
    alone = [setup.ours([picture(seed)]) for seed in (1, 2)]
    for index, one in enumerate(alone):
        assert rel_l2(together.conditional[index], one.conditional[0]) <= TOLERANCE
        assert rel_l2(together.unconditional[index], one.unconditional[0]) <= TOLERANCE


def test_u_net_with_image_tokens(setup: Setup) -> None:
    """Two images of one adapter share a softmax; text and image rows as the classifier-free guidance has them."""
    backend, config = setup.backend, setup.backend.model.unet.config
    generator = torch.Generator().manual_seed(12)
    sample = torch.randn((2, 4, 16, 16), generator=generator)
    text = torch.randn((2, 77, config.cross_attention_dim), generator=generator)
    pooled, time_ids = torch.randn((2, 24), generator=generator), torch.full((2, 6), 128.0)
    pictures, scale = [picture(4), picture(5)], 0.7
    setup.pipeline.set_ip_adapter_scale(scale)
    conditions = {"text_embeds": pooled, "time_ids": time_ids, "image_embeds": setup.features(pictures)}
    wanted = setup.pipeline.unet(sample, 401, text, added_cond_kwargs=conditions).sample

    unet = backend.model.unet
    added = None if config.added_dim is None else backend.added_embedding(unet, pooled, time_ids)
    time = backend.time_table(unet, torch.full((2,), 401.0), added)
    tokens = setup.ours(pictures)
    rows = torch.stack([tokens.unconditional.flatten(0, 1), tokens.conditional.flatten(0, 1)])
    prompt = ContextSegment((ContextPiece(backend.cross_kv(unet, text)),))
    image = ContextPiece(backend.image_prompt_kv(setup.adapter, rows))
    got = backend.evaluate(Rows(sample, time, (prompt, weighted(image, scale))))
    assert rel_l2(got, wanted) <= TOLERANCE
    assert rel_l2(backend.evaluate(Rows(sample, time, (prompt,))), wanted) > 1e-3
    off = backend.evaluate(Rows(sample, time, (prompt, weighted(image, 0.0))))
    assert torch.equal(off, backend.evaluate(Rows(sample, time, (prompt,))))


def test_grey_and_transparent_pictures(setup: Setup) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    layer = Image.fromarray(np.dstack([np.stack([grey] * 3, 2), np.full_like(grey, 255)]))
    wanted = setup.ours([Image.fromarray(grey).convert("RGB")]).conditional
    for picture_of_mode in (Image.fromarray(grey), layer):
        assert torch.equal(setup.ours([picture_of_mode]).conditional, wanted)
