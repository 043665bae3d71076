"""Guidance, solver step and blend of known regions: one pass over the latents.

Per sample p, with the terms t in term_start[p] .. term_start[p + 1]:

    m  = sum_t term_coefficient[t] * weights[term_weight[t]] * eps[term_row[t]], at window (term_top[t], term_left[t])
    z  = noise + sum_j noise_scale_j n(noise_source, j)             n: `bridle_kernels.counter_noise`
    x' = c_0 x + c_1 m + c_2 z + sum_k c_{3+k} history_k
    x' = mask x' + (1 - mask) (k_0 known + k_1 known_noise)            where has_known[p]
"""

from torch import Tensor

from bridle_kernels.guide_step_blend import native, reference

__all__ = ["guide_step_blend"]


def guide_step_blend(
    eps: Tensor,
    *,
    term_start: Tensor,
    term_row: Tensor,
    term_coefficient: Tensor,
    term_weight: Tensor,
    term_top: Tensor,
    term_left: Tensor,
    weights: Tensor | None = None,
    latents: Tensor,
    history: Tensor | None = None,
    coefficients: Tensor,
    noise: Tensor | None = None,
    noise_source: Tensor | None = None,
    noise_scale: Tensor | None = None,
    known: Tensor | None = None,
    known_noise: Tensor | None = None,
    known_coefficients: Tensor | None = None,
    mask: Tensor | None = None,
    has_known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The samples after the step and the guided model outputs, [P, C, H, W] each, in the dtype of `latents`.

    eps: [R, C, h, w] outputs of the rows. term_start: [P + 1] int32. term_row, term_weight (-1 = none), term_top,
    term_left: [T] int32; columns wrap modulo W. term_coefficient: [T] float32. weights: [M, h, w]. latents: [P, C, H,
    W]. history: [P, K, C, H, W]. coefficients: [P, 3 + K]; a 0 skips its term. noise, known, known_noise: [P, C, H, W].
    noise_source: [P, 2] int64, seed (its 64 bits) and step. noise_scale: [P, J] float32, of draws 0 to J - 1; a 0 skips one.
    known_coefficients: [P, 2]. mask: [P, 1, H, W], 1 = keep the step's result. has_known: [P]. Raises ValueError.

    CPU tensors without gradients run in C++, all others as the reference; both give the same bits in float32.
    """
    _check(eps, term_start, latents, history, coefficients)
    _check_draws(latents.shape[0], noise_source, noise_scale)
    floats = [t for t in (weights, latents, history, noise, known, known_noise, mask) if t is not None]
    serve = reference.guide_step_blend if native.refusal(eps, floats) else native.guide_step_blend
    return serve(
        eps,
        term_start=term_start,
        term_row=term_row,
        term_coefficient=term_coefficient,
        term_weight=term_weight,
        term_top=term_top,
        term_left=term_left,
        weights=weights,
        latents=latents,
        history=history,
        coefficients=coefficients,
        noise=noise,
        noise_source=noise_source,
        noise_scale=noise_scale,
        known=known,
        known_noise=known_noise,
        known_coefficients=known_coefficients,
        mask=mask,
        has_known=has_known,
    )


def _check(eps: Tensor, term_start: Tensor, latents: Tensor, history: Tensor | None, coefficients: Tensor) -> None:
    if eps.ndim != 4 or latents.ndim != 4 or eps.shape[1] != latents.shape[1]:
        raise ValueError(
            f"guide_step_blend: eps is {list(eps.shape)} and latents {list(latents.shape)}, want [R, C, h, w]"
        )
    samples, extra = latents.shape[0], 0 if history is None else history.shape[1]
    if term_start.shape != (samples + 1,):
        raise ValueError(f"guide_step_blend: term_start is {list(term_start.shape)}, wants [{samples + 1}]")
    if coefficients.shape != (samples, 3 + extra):
        raise ValueError(f"guide_step_blend: coefficients is {list(coefficients.shape)}, wants {[samples, 3 + extra]}")


def _check_draws(samples: int, noise_source: Tensor | None, noise_scale: Tensor | None) -> None:
    if noise_source is None and noise_scale is None:
        return
    if noise_source is None or noise_source.shape != (samples, 2):
        got = None if noise_source is None else list(noise_source.shape)
        raise ValueError(f"guide_step_blend: noise_source is {got}, wants {[samples, 2]} beside noise_scale")
    if noise_scale is None or noise_scale.ndim != 2 or noise_scale.shape[0] != samples:
        got = None if noise_scale is None else list(noise_scale.shape)
        raise ValueError(f"guide_step_blend: noise_scale is {got}, wants [{samples}, J] beside noise_source")
