#include "bridle/norm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bridle/op_arguments.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

const float* floats(const char* name, const Borrowed& tensor, const std::vector<int64_t>& shape) {
  return static_cast<const float*>(compact(name, tensor, Dtype::kFloat32, shape));
}

// sources: one or two of [R, positions, C]. out: [R, positions, sum of their channels].
void run_group_norm(ThreadPool& pool, const std::vector<py::object>& sources, const py::object& out,
                    const py::object& weight, const py::object& bias, int64_t groups, double eps,
                    const py::object& scale, const py::object& shift, const std::string& activation,
                    const std::string& isa) {
  const BorrowedList images("source", sources);
  const Borrowed w = borrow("weight", weight), b = borrow("bias", bias), s = borrow("scale", scale),
                 d = borrow("shift", shift), o = borrow("out", out);
  GroupNorm a = group_norm_arguments(images.tensors, present("out", o), present("weight", w), present("bias", b),
                                     groups, eps, activation);
  const std::vector<int64_t> condition = {a.rows, a.channels[0] + a.channels[1]};
  a.scale = floats("scale", s, condition);
  a.shift = floats("shift", d, condition);
  const Isa chosen = isa_or_active(isa);
  py::gil_scoped_release release;
  std::vector<double> workspace(group_norm_workspace(a) / sizeof(double) + 1);
  group_norm(a, reinterpret_cast<std::byte*>(workspace.data()), chosen, pool);
}

// x, out: [m, C].
void run_layer_norm(ThreadPool& pool, const py::object& x, const py::object& out, const py::object& weight,
                    const py::object& bias, double eps, const std::string& isa) {
  const Borrowed in = borrow("x", x), w = borrow("weight", weight), b = borrow("bias", bias), o = borrow("out", out);
  const LayerNorm a =
      layer_norm_arguments(present("x", in), present("out", o), present("weight", w), present("bias", b), eps);
  const Isa chosen = isa_or_active(isa);
  py::gil_scoped_release release;
  layer_norm(a, chosen, pool);
}

}  // namespace

void bind_norm(py::module_& module) {
  module.def("group_norm", &run_group_norm, py::arg("pool"), py::arg("sources"), py::arg("out"), py::arg("weight"),
             py::arg("bias"), py::kw_only(), py::arg("groups"), py::arg("eps"), py::arg("scale") = py::none(),
             py::arg("shift") = py::none(), py::arg("activation") = "", py::arg("isa") = "");
  module.def("layer_norm", &run_layer_norm, py::arg("pool"), py::arg("x"), py::arg("out"), py::arg("weight"),
             py::arg("bias"), py::kw_only(), py::arg("eps"), py::arg("isa") = "");
}

}  // namespace bridle::python
