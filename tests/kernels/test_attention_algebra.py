"""attention: every term of the algebra, alone and together, against maps that are built and edited."""

import pytest
import torch
from attention_cases import CASES, D, H, L, N, R, cases, rand, relative
from naive_attention import naive_attention

from bridle_kernels.attention import attention, softmax_map

EXACT = 1e-12


@pytest.fixture(params=[softmax_map.MAP_ELEMENTS, 4 * H * L], ids=["one slice", "slices"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_map, "MAP_ELEMENTS", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_edited_map(case: str, scale: float | None) -> None:
    q, segments = rand(0, R, N, H, D), cases()[case]
    wanted = naive_attention(q, segments, scale)
    assert relative(attention(q, segments, scale=scale), wanted.out) < EXACT
    for s, segment in enumerate(segments):
        for capture, columns in zip(segment.captures, wanted.captures[s], strict=True):
            assert relative(capture.out, columns) < EXACT
        if segment.mass is not None and segment.mass.out is not None:
            mass = wanted.masses[s]
            assert mass is not None and relative(segment.mass.out, mass) < EXACT
        if segment.lse is not None:
            hidden = wanted.lses[s] == -torch.inf
            assert torch.equal(segment.lse == -torch.inf, hidden)
            assert relative(segment.lse[~hidden], wanted.lses[s][~hidden]) < EXACT
