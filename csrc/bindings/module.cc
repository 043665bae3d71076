#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bridle/isa.h"

PYBIND11_MODULE(_core, module) {
  module.def("available_isas", [] {
    std::vector<std::string> names;
    for (const bridle::Isa isa : bridle::available_isas()) names.push_back(bridle::isa_name(isa));
    return names;
  });
  module.def("active_isa", [] { return bridle::isa_name(bridle::active_isa()); });
  bridle::python::bind_attention(module);
  bridle::python::bind_gemm(module);
  bridle::python::bind_guide_step_blend(module);
  bridle::python::bind_image_ops(module);
  bridle::python::bind_norm(module);
  bridle::python::bind_plan(module);
  bridle::python::bind_residual_add(module);
  bridle::python::bind_token_ops(module);
}
