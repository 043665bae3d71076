// One function per exposed op.
#pragma once

#include <pybind11/pybind11.h>

namespace bridle::python {

void bind_attention(pybind11::module_& module);
void bind_gemm(pybind11::module_& module);
void bind_guide_step_blend(pybind11::module_& module);
void bind_image_ops(pybind11::module_& module);
void bind_norm(pybind11::module_& module);
void bind_plan(pybind11::module_& module);
void bind_residual_add(pybind11::module_& module);
void bind_token_ops(pybind11::module_& module);

}  // namespace bridle::python
