"""Ops of SD1.5 at 512x512 with two rows, ours and PyTorch's, with the work that each does."""

from cpu.op_cases.attention import attention_cases
from cpu.op_cases.case import Case, name_of
from cpu.op_cases.convolution import convolution_cases
from cpu.op_cases.elementwise import (
    average_pool_cases,
    copy_cases,
    guide_step_blend_cases,
    pointwise_cases,
    residual_add_cases,
    time_embedding_cases,
)
from cpu.op_cases.linear import geglu_cases, linear_cases
from cpu.op_cases.norm import group_norm_cases, layer_norm_cases

__all__ = ["REGISTRY", "Case", "copy_cases", "linear_cases", "name_of"]

REGISTRY = (
    attention_cases,
    linear_cases,
    geglu_cases,
    convolution_cases,
    group_norm_cases,
    layer_norm_cases,
    residual_add_cases,
    guide_step_blend_cases,
    copy_cases,
    pointwise_cases,
    average_pool_cases,
    time_embedding_cases,
)
"""Functions of a pool and a dtype that give cases."""
