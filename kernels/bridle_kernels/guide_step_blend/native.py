"""The C++ kernel on CPU tensors (csrc/ops/guide_step_blend)."""

import numpy as np
import torch
from torch import Tensor

from bridle_kernels import _core
from bridle_kernels.guide_step_blend.reference import total_noise

_EPS_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refusal(eps: Tensor, others: list[Tensor]) -> str | None:
    """None, or why the kernel does not serve these tensors."""
    if any(tensor.device.type != "cpu" for tensor in (eps, *others)):
        return "a tensor is not in CPU memory"
    if eps.dtype not in _EPS_DTYPES or any(tensor.dtype != torch.float32 for tensor in others):
        return "eps wants float32, float16 or bfloat16, the others float32"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (eps, *others)):
        return "it has no gradient"
    return None


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
    isa: str = "",
) -> tuple[Tensor, Tensor]:
    """See `bridle_kernels.guide_step_blend`. isa: a variant of `available_isas()`; empty takes the active one."""
    out, model_output = torch.empty(latents.shape), torch.empty(latents.shape)
    tensors = {
        "eps": eps,
        "weights": weights,
        "latents": latents,
        "history": history,
        "noise": total_noise(latents, noise, noise_source, noise_scale),
        "known": known,
        "known_noise": known_noise,
        "mask": mask,
        "out": out,
        "model_output": model_output,
    }
    arrays = {
        "term_start": term_start,
        "term_row": term_row,
        "term_weight": term_weight,
        "term_top": term_top,
        "term_left": term_left,
        "term_coefficient": term_coefficient,
        "coefficients": coefficients,
        "known_coefficients": known_coefficients,
        "has_known": has_known,
    }
    detached = {name: None if tensor is None else tensor.detach() for name, tensor in tensors.items()}
    empty = np.zeros(0, np.float32)
    plain = {name: empty if tensor is None else tensor.detach().numpy() for name, tensor in arrays.items()}
    _core.guide_step_blend(detached, plain, isa)
    return out, model_output
