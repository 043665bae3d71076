#include "bridle/guide_step_blend.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::vector<T> values(const Array<T>& array) {
  return std::vector<T>(array.data(), array.data() + array.size());
}

const Strided& require_float32(const char* name, const Strided& tensor) {
  if (tensor && tensor.dtype != Dtype::kFloat32) {
    throw std::invalid_argument(std::string("guide_step_blend: ") + name + " wants float32");
  }
  return tensor;
}

void run(const py::dict& tensors, const py::dict& arrays, const std::string& isa) {
  const auto tensor = [&](const char* name) { return borrow(name, tensors[name]); };
  const auto integers = [&](const char* name) { return values(arrays[name].cast<Array<int32_t>>()); };
  const auto floats = [&](const char* name) { return values(arrays[name].cast<Array<float>>()); };
  const Borrowed eps = tensor("eps"), weights = tensor("weights"), latents = tensor("latents"),
                 history = tensor("history"), noise = tensor("noise"), known = tensor("known"),
                 known_noise = tensor("known_noise"), mask = tensor("mask"), out = tensor("out"),
                 model_output = tensor("model_output");
  GuideStepBlend a;
  a.eps = eps.tensor;
  a.weights = require_float32("weights", weights.tensor);
  a.latents = require_float32("latents", latents.tensor);
  a.history = require_float32("history", history.tensor);
  a.noise = require_float32("noise", noise.tensor);
  a.known = require_float32("known", known.tensor);
  a.known_noise = require_float32("known_noise", known_noise.tensor);
  a.mask = require_float32("mask", mask.tensor);
  a.out = require_float32("out", out.tensor);
  a.model_output = require_float32("model_output", model_output.tensor);
  a.term_start = integers("term_start");
  a.term_row = integers("term_row");
  a.term_weight = integers("term_weight");
  a.term_top = integers("term_top");
  a.term_left = integers("term_left");
  a.has_known = integers("has_known");
  a.term_coefficient = floats("term_coefficient");
  a.coefficients = floats("coefficients");
  a.known_coefficients = floats("known_coefficients");
  const Isa chosen = isa_or_active(isa);
  py::gil_scoped_release release;
  guide_step_blend(a, chosen);
}

}  // namespace

void bind_guide_step_blend(py::module_& module) {
  module.def("guide_step_blend", &run, py::arg("tensors"), py::arg("arrays"), py::arg("isa") = "",
             "Runs the op; see bridle_kernels.guide_step_blend. isa: a variant by name, or the active one.");
}

}  // namespace bridle::python
