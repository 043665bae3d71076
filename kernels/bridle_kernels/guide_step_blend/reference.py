"""Guidance, solver step and blend of known regions, in plain PyTorch: the definition."""

import torch
from torch import Tensor

from bridle_kernels.counter_noise import standard_normal


def guide_step_blend(
    eps: Tensor,
    *,
    term_start: Tensor,
    term_row: Tensor,
    term_coefficient: Tensor,
    term_weight: Tensor,
    term_top: Tensor,
    term_left: Tensor,
    weights: Tensor | None,
    latents: Tensor,
    history: Tensor | None,
    coefficients: Tensor,
    noise: Tensor | None,
    noise_source: Tensor | None,
    noise_scale: Tensor | None,
    known: Tensor | None,
    known_noise: Tensor | None,
    known_coefficients: Tensor | None,
    mask: Tensor | None,
    has_known: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `bridle_kernels.guide_step_blend`. Computes in the dtype of `latents`."""
    noise = total_noise(latents, noise, noise_source, noise_scale)
    outputs, results = [], []
    for p in range(latents.shape[0]):
        m = latents.new_zeros(latents.shape[1:])
        for t in range(int(term_start[p]), int(term_start[p + 1])):
            place = (int(term_row[t]), int(term_weight[t]), int(term_top[t]), int(term_left[t]))
            m = _add_term(m, eps, weights, float(term_coefficient[t]), place)
        terms = [latents[p], m, None if noise is None else noise[p]]
        terms += [] if history is None else list(history[p])
        x = _weighted_sum(terms, coefficients[p].tolist(), latents[p])
        if known is not None and has_known is not None and bool(has_known[p]):
            assert known_noise is not None and known_coefficients is not None and mask is not None
            level = _weighted_sum([known[p], known_noise[p]], known_coefficients[p].tolist(), latents[p])
            x = mask[p] * x + (1.0 - mask[p]) * level
        outputs.append(m)
        results.append(x)
    return torch.stack(results), torch.stack(outputs)


def total_noise(
    latents: Tensor, noise: Tensor | None, noise_source: Tensor | None, noise_scale: Tensor | None
) -> Tensor | None:
    """[P, C, H, W]: the noise that is given plus the draws of each sample; None where there is neither."""
    if noise_source is None or noise_scale is None:
        return noise
    made = torch.zeros_like(latents) if noise is None else noise.to(latents.dtype, copy=True)
    for p, (seed, step) in enumerate(noise_source.tolist()):
        for draw, scale in enumerate(noise_scale[p].tolist()):
            if scale != 0.0:
                drawn = standard_normal(seed, step, draw, tuple(made.shape[1:]), made.dtype)
                made[p] += drawn.to(made.device) * scale
    return made


def _add_term(
    m: Tensor, eps: Tensor, weights: Tensor | None, coefficient: float, place: tuple[int, int, int, int]
) -> Tensor:
    """m plus one weighted row at its window; columns wrap around the right edge."""
    row, weight, top, left = place
    value = eps[row].to(m.dtype) * coefficient
    if weight >= 0:
        assert weights is not None
        value = value * weights[weight].to(m.dtype)
    height, width = value.shape[-2:]
    if (height, width) == tuple(m.shape[-2:]) and top == 0 and left == 0:
        return m + value
    columns = [(left + i) % m.shape[-1] for i in range(width)]
    total = m.clone()
    total[:, top : top + height, columns] += value
    return total


def _weighted_sum(terms: list[Tensor | None], coefficients: list[float], like: Tensor) -> Tensor:
    """Sum in order; a coefficient of 0 skips its term, so that an infinity there has no influence."""
    total = torch.zeros_like(like)
    for term, coefficient in zip(terms, coefficients, strict=True):
        if term is not None and coefficient != 0.0:
            total = total + term.to(like.dtype) * coefficient
    return total
