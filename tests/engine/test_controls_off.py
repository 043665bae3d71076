"""Maps, regions, views and image prompts: off is the plain run to the bit, on is not; lists, orders, and static work."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from control_cases import CONTROLS, HEIGHT, PROMPT, SOURCE, WIDTH, Changes, asked, distance, identical, run
from runs import half_mask, picture, rel_l2, with_dtype
from watched_ops import NamingOps

import bridle

BOX = (0.0, 0.0, 0.5, 1.0)
LATE = {"start": 0.9, "end": 0.95}
"""A window without a step of its own."""

OFF: Mapping[str, Changes] = {
    "no controls": {"controls": [], "attention": [], "regions": [], "views": None},
    "latent mode without regions": {"region_mode": "latent", "base_ratio": 1.0, "bootstrapping_steps": 3},
    "capture": {"attention": [bridle.CaptureMaps(["circle", "blue square"])]},
    "capture some": {
        "attention": [
            bridle.CaptureMaps("circle", resolution=4, steps=[1]),
            bridle.CaptureMaps("blue", layers=["up"]),
        ]
    },
    "factor 1": {"attention": [bridle.Reweight("circle", 1.0)]},
    "factor late": {"attention": [bridle.Reweight("circle", 4.0, **LATE)]},
    "bias 0": {"attention": [bridle.InjectMap("circle", box=BOX, strength=0.0)]},
    "bias late": {"attention": [bridle.InjectMap("circle", box=BOX, strength=3.0, **LATE)]},
    "mass 0": {"attention": [bridle.InjectMap("circle", box=BOX, strength=0.0, mode="mass")]},
    "mass late": {"attention": [bridle.InjectMap("circle", box=BOX, mode="mass", **LATE)]},
    "image prompt 0": {"controls": [bridle.ImagePrompt("ip-adapter", picture(3), scale=0.0)]},
    "image prompt without blocks": {"controls": [bridle.ImagePrompt("ip-adapter", picture(3), scale={})]},
    "image prompt of zeros": {"controls": [bridle.ImagePrompt("ip-adapter", picture(3), scale={"up": 0.0})]},
    "image prompt late": {"controls": [bridle.ImagePrompt("ip-adapter", picture(3), **LATE)]},
    "image prompt 0 with a mask": {
        "controls": [bridle.ImagePrompt("ip-adapter", picture(3), scale=0.0, mask=half_mask(64))]
    },
    "one view": {"views": bridle.Views(WIDTH, 8)},
}


@pytest.fixture(scope="module")
def plain(map_engine: bridle.Engine) -> bridle.Result:
    return run(map_engine)


@pytest.mark.parametrize("change", OFF.values(), ids=OFF)
def test_off_is_the_plain_run(map_engine: bridle.Engine, plain: bridle.Result, change: Changes) -> None:
    assert identical(run(map_engine, change), plain)


def test_a_control_that_ends_leaves_later_steps_alone(map_engine: bridle.Engine) -> None:
    """Active in the first of three steps only: neither off nor the same as active throughout."""
    ends = {"end": 0.4}
    for whole, part in (
        (bridle.Reweight("circle", 4.0), bridle.Reweight("circle", 4.0, **ends)),
        (bridle.InjectMap("circle", box=BOX), bridle.InjectMap("circle", box=BOX, **ends)),
        (bridle.InjectMap("circle", box=BOX, mode="mass"), bridle.InjectMap("circle", box=BOX, mode="mass", **ends)),
    ):
        results = map_engine.sample([asked(), asked({"attention": [whole]}), asked({"attention": [part]})])
        assert distance(results[2], results[0]) > 1e-3 and distance(results[2], results[1]) > 1e-3


@pytest.mark.parametrize("scale", [5.0, 1.0], ids=["guided", "unguided"])
def test_an_edit_that_edits_nothing_is_two_requests(map_engine: bridle.Engine, scale: float) -> None:
    """Its source is the first of two requests of one batch, its image the second, to the bit."""
    two = map_engine.sample([asked({"prompt": prompt, "guidance_scale": scale}) for prompt in (SOURCE, PROMPT)])
    spans = [
        {"cross": 0.0, "self": 0.0},
        {"cross": (0.5, 0.5), "self": (0.1, 0.2)},
        {"cross": {"default_": 0.0}, "self": 0.0},
    ]
    for off in spans:
        for mode in ("replace", "refine"):
            edit = run(
                map_engine, {"attention": [bridle.PromptEdit(SOURCE, mode=mode, **off)], "guidance_scale": scale}
            )
            assert torch.equal(edit.source_latents, two[0].latents) and torch.equal(edit.latents, two[1].latents)
            assert np.array_equal(edit.source_images, two[0].images) and np.array_equal(edit.images, two[1].images)


def test_the_source_of_an_edit_is_the_run_of_its_prompt(map_engine: bridle.Engine) -> None:
    """Also with noise in every step, a picture to start from, and several images."""
    common = {"scheduler": "euler a", "num_images": 2, "seed": [3, 9], "image": picture(4), "strength": 0.8}
    blend = bridle.LocalBlend("square", "circle", start=0.5)
    edit = run(map_engine, common, {"attention": [bridle.PromptEdit(SOURCE, local_blend=blend)]})
    source = run(map_engine, common, {"prompt": SOURCE})
    assert rel_l2(edit.source_latents, source.latents) < 1e-5
    assert rel_l2(edit.latents, run(map_engine, common).latents) > 1e-3


def test_edits_of_all_maps_ignore_the_prompt_in_their_steps(map_engine: bridle.Engine) -> None:
    """With the source's cross-attention in every step, values alone differ."""
    own = {"attention": [bridle.PromptEdit(SOURCE, cross=1.0)]}
    less = {"attention": [bridle.PromptEdit(SOURCE, cross=0.3)]}
    words = {"attention": [bridle.PromptEdit(SOURCE, cross={"default_": 1.0, "circle": 0.3})]}
    every, some, word = map_engine.sample([asked(change) for change in (own, less, words)])
    assert min(distance(every, some), distance(every, word), distance(some, word)) > 1e-3


def test_a_longer_second_prompt_is_edited_too(xl_map_engine: bridle.Engine) -> None:
    """SDXL's context is as long as the longer of two prompts; words are those of the first."""
    longer = {"prompt_2": "blue " * 40}
    maps = ("PromptEdit", "CaptureMaps", "Reweight", "InjectMap bias", "InjectMap mass")
    every = run(xl_map_engine, longer, *(CONTROLS[name] for name in maps))
    for name in maps:
        without = run(xl_map_engine, longer, *(CONTROLS[other] for other in maps if other != name))
        assert identical(without, every) if name == "CaptureMaps" else distance(without, every) > 1e-4, name
    assert distance(run(xl_map_engine, *(CONTROLS[name] for name in maps)), every) > 1e-3


def test_a_region_is_guided_where_the_request_is_not(map_engine: bridle.Engine, xl_map_engine: bridle.Engine) -> None:
    """By the request's negative prompt, which nothing else reads then; SDXL has zeros where there is none."""
    regions = [bridle.Region("a star", BOX, guidance_scale=4.0), bridle.Region("a ring", mask=half_mask(64))]
    common = {"regions": regions, "region_mode": "latent", "guidance_scale": 1.0}
    for engine in (map_engine, xl_map_engine):
        dull, none, unguided = engine.sample(
            [
                asked(common),
                asked(common, {"negative_prompt": None}),
                asked(common, {"regions": [bridle.Region("a star", BOX), regions[1]]}),
            ]
        )
        assert min(distance(dull, none), distance(dull, unguided), distance(none, unguided)) > 1e-3


def test_a_base_ratio_of_one_leaves_the_prompt_alone(map_engine: bridle.Engine, plain: bridle.Result) -> None:
    positive = [bridle.Region("a green star", BOX), bridle.Region("a ring", mask=half_mask(64))]
    results = map_engine.sample([asked({"regions": positive, "base_ratio": ratio}) for ratio in (1.0, 0.9, 0.0)])
    assert distance(results[0], plain) < 1e-5
    assert distance(results[1], plain) > 1e-4 and distance(results[2], results[1]) > 1e-3


@pytest.mark.parametrize("mode", ["attention", "latent"])
def test_regions_that_overlap_share_by_weight(map_engine: bridle.Engine, mode: str) -> None:
    """The same region twice is the region once; of two, the heavier one has more to say."""
    common = {"region_mode": mode, "bootstrapping_steps": 0, "base_ratio": 0.0}
    star, ring = bridle.Region("a green star", BOX), bridle.Region("a ring", BOX)
    heavy = bridle.Region("a ring", BOX, weight=9.0)
    lists = ([star], [star, star], [star, heavy], [star, ring], [ring])
    once, twice, more, both, other = map_engine.sample([asked(common, {"regions": regions}) for regions in lists])
    assert distance(twice, once) < 1e-5
    assert distance(more, other) < distance(both, other) < distance(once, other)
    assert distance(more, other) > 1e-3


def test_masks_of_one_prompt_are_regions_of_their_own(map_engine: bridle.Engine) -> None:
    """Two regions that differ in nothing but their masks are together the whole."""
    left = half_mask(64)[:, ::-1].copy()
    halves = [bridle.Region("a ring", mask=left), bridle.Region("a ring", mask=half_mask(64))]
    for mode in ("attention", "latent"):
        common = {"region_mode": mode, "bootstrapping_steps": 0, "base_ratio": 0.3}
        parts, whole, one = map_engine.sample(
            [
                asked(common, {"regions": regions})
                for regions in (halves, [bridle.Region("a ring", (0.0, 0.0, 1.0, 1.0))], halves[:1])
            ]
        )
        assert distance(parts, whole) < 1e-5 and distance(one, whole) > 1e-3


def test_no_steps_are_left(map_engine: bridle.Engine) -> None:
    """Strength 0 runs no step: every control that does not need one leaves the picture as it was encoded."""
    kept = {"image": picture(4), "strength": 0.0}
    untouched = run(map_engine, kept)
    for name in (
        "ImagePrompt",
        "Reweight",
        "InjectMap bias",
        "attention regions",
        "latent regions",
        "PromptEdit",
        "Views",
    ):
        assert torch.equal(run(map_engine, CONTROLS[name], kept).latents, untouched.latents), name


def test_narrow_circular_panoramas(map_engine: bridle.Engine) -> None:
    """Narrower than the margin that their decoding wraps around."""
    narrow = {"width": 32, "views": bridle.Views(16, 8, circular=True)}
    result = run(map_engine, narrow)
    assert result.images.shape == (1, HEIGHT, 32, 3) and result.images.std() > 0.01
    assert distance(result, run(map_engine, narrow, {"views": bridle.Views(16, 8)})) > 1e-3


LISTED = [
    asked(CONTROLS["CaptureMaps"], CONTROLS["Reweight"]),
    asked(CONTROLS["attention regions"], {"prompt": f"{PROMPT} " * 3}),
    asked(CONTROLS["InjectMap bias"], {"num_inference_steps": 2, "scheduler": "euler a"}),
    asked(CONTROLS["PromptEdit"], CONTROLS["CaptureMaps"], {"seed": 8}),
    asked(CONTROLS["ImagePrompt"], {"num_inference_steps": 2}),
    asked(CONTROLS["Views"], CONTROLS["InjectMap mass"]),
    asked(CONTROLS["latent regions"], {"seed": 11, "guidance_scale": 1.0}),
    asked(),
]


@pytest.fixture(scope="module")
def exact(map_engine: bridle.Engine) -> list[bridle.Result]:
    """`LISTED` in float64."""
    return with_dtype(map_engine, torch.float64).sample(LISTED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_list_in_any_order_equals_single_requests(
    map_engine: bridle.Engine, exact: list[bridle.Result], dtype: torch.dtype
) -> None:
    """Within twice the rounding noise of the type: how far the same request is from its float64 run."""
    own = with_dtype(map_engine, dtype)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    alone = [own.sample(one) for one in LISTED]
    noise = [rel_l2(a.latents, b.latents) for a, b in zip(alone, exact, strict=True)]
    assert all(0 < value < (1e-4 if dtype == torch.float32 else 0.5) for value in noise), noise
    together = own.sample(LISTED)
    permuted = own.sample([LISTED[index] for index in order])
    for results, places in ((together, range(len(LISTED))), (permuted, order)):
        for result, place in zip(results, places, strict=True):
            assert rel_l2(result.latents, alone[place].latents) <= 2 * noise[place], place
            assert set(result.maps) == set(alone[place].maps)
            assert (result.source_latents is None) is (alone[place].source_latents is None)
    if dtype == torch.float32:
        for place in (0, 3):
            for word, heat in alone[place].maps.items():
                assert abs(permuted[order.index(place)].maps[word] - heat).max() < 1e-4


def test_images_of_a_request_have_maps_and_edits_of_their_own(map_engine: bridle.Engine) -> None:
    edits = asked(CONTROLS["PromptEdit"], CONTROLS["CaptureMaps"], {"num_images": 2, "seed": [8, 5]})
    two = map_engine.sample(edits)
    for index, seed in enumerate((8, 5)):
        one = run(map_engine, CONTROLS["PromptEdit"], CONTROLS["CaptureMaps"], {"seed": seed})
        assert rel_l2(two.latents[index], one.latents[0]) < 1e-5
        assert rel_l2(two.source_latents[index], one.source_latents[0]) < 1e-5
        for word in one.maps:
            assert abs(two.maps[word][index] - one.maps[word][0]).max() < 1e-4
    assert rel_l2(two.latents[0], two.latents[1]) > 0.1


STATIC = {
    "attention regions": {"text": 2 + 2 + 1, "image": 0},
    "latent regions": {"text": 2 + 2 + 1, "image": 0},
    "PromptEdit": {"text": 3, "image": 0},
    "ImagePrompt": {"text": 2, "image": 2},
    "masked": {"text": 2, "image": 2 + 1},
    "Views": {"text": 2, "image": 0},
    "CaptureMaps": {"text": 2, "image": 0},
}
"""Prompts that are encoded, and images with the blank that unconditional rows see: K and V once for each."""


@pytest.mark.parametrize("name", STATIC)
def test_prompts_and_pictures_are_encoded_once_a_request(map_folder: object, name: str) -> None:
    masked = bridle.ImagePrompt("ip-adapter", [picture(3), picture(4)], mask=[half_mask(64), np.eye(64)])
    change = {"controls": [masked]} if name == "masked" else CONTROLS[name]
    engine = bridle.load(map_folder, backend="reference")
    adapter = engine.control(masked)
    model = engine.backend.model
    parts: dict[str, Mapping[str, torch.Tensor]] = {
        "unet": model.unet.tensors,
        "text": model.text_encoders[0].tensors,
        "adapter": adapter.attention,
        "encoder": adapter.image_encoder.tensors,
        "projection": adapter.projection.tensors,
    }
    names = {tensor.data_ptr(): f"{part}/{key}" for part, tensors in parts.items() for key, tensor in tensors.items()}

    def uses(steps: int, images: int) -> Counter[str]:
        engine.backend.ops = NamingOps(names)
        run(engine, change, {"num_inference_steps": steps, "num_images": images})
        return engine.backend.ops.uses

    once, longer, several = uses(2, 1), uses(4, 1), uses(2, 2)
    text, image = STATIC[name]["text"], STATIC[name]["image"]
    for key in names.values():
        part = key.split("/")[0]
        if part == "unet" and not key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            continue
        assert once[key] == longer[key] == several[key], key
        if part in ("unet", "adapter"):
            assert once[key] == (text if part == "unet" else image), key
    assert {key for key in names.values() if key.startswith("text/")} <= set(once)
    assert once["text/text_model.final_layer_norm.weight"] == text
    assert any(key.startswith("encoder/") for key in once) is (image > 0)
