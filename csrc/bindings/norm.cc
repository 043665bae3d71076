#include "bridle/norm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

Isa isa_of(const std::string& name) { return name.empty() ? active_isa() : isa_from_name(name); }

const float* floats(const char* name, const Borrowed& tensor, const std::vector<int64_t>& shape) {
  return static_cast<const float*>(compact(name, tensor, Dtype::kFloat32, shape));
}

const float* wanted(const char* name, const Borrowed& tensor, const std::vector<int64_t>& shape) {
  return static_cast<const float*>(required(name, tensor, Dtype::kFloat32, shape));
}

// sources: one or two of [R, positions, C]. out: [R, positions, sum of their channels].
void run_group_norm(ThreadPool& pool, const std::vector<py::object>& sources, const py::object& out,
                    const py::object& weight, const py::object& bias, int64_t groups, double eps,
                    const py::object& scale, const py::object& shift, const std::string& activation,
                    const std::string& isa) {
  if (sources.empty() || sources.size() > 2) throw std::invalid_argument("sources wants one or two tensors");
  std::vector<Borrowed> borrowed;
  GroupNorm a;
  for (size_t i = 0; i < sources.size(); ++i) {
    borrowed.push_back(borrow("source", sources[i]));
    const std::vector<int64_t>& shape = borrowed[i].tensor.shape;
    if (shape.size() != 3) throw std::invalid_argument("source is " + text(shape) + ", wants [R, positions, C]");
    a.dtype = borrowed[0].tensor.dtype;
    a.rows = borrowed[0].tensor.shape[0];
    a.positions = borrowed[0].tensor.shape[1];
    a.channels[i] = shape[2];
    a.sources[i] = required("source", borrowed[i], a.dtype, {a.rows, a.positions, shape[2]});
  }
  const int64_t channels = a.channels[0] + a.channels[1];
  const Borrowed w = borrow("weight", weight), b = borrow("bias", bias), s = borrow("scale", scale),
                 d = borrow("shift", shift), o = borrow("out", out);
  a.groups = groups;
  a.eps = eps;
  a.weight = wanted("weight", w, {channels});
  a.bias = wanted("bias", b, {channels});
  a.scale = floats("scale", s, {a.rows, channels});
  a.shift = floats("shift", d, {a.rows, channels});
  a.activation = activation_named(activation);
  a.out = required("out", o, a.dtype, {a.rows, a.positions, channels});
  const Isa chosen = isa_of(isa);
  py::gil_scoped_release release;
  std::vector<double> workspace(group_norm_workspace(a) / sizeof(double) + 1);
  group_norm(a, reinterpret_cast<std::byte*>(workspace.data()), chosen, pool);
}

// x, out: [m, C].
void run_layer_norm(ThreadPool& pool, const py::object& x, const py::object& out, const py::object& weight,
                    const py::object& bias, double eps, const std::string& isa) {
  const Borrowed in = borrow("x", x), w = borrow("weight", weight), b = borrow("bias", bias), o = borrow("out", out);
  if (in.tensor.shape.size() != 2) throw std::invalid_argument("x is " + text(in.tensor.shape) + ", wants [m, C]");
  LayerNorm a;
  a.dtype = in.tensor.dtype;
  a.m = in.tensor.shape[0];
  a.channels = in.tensor.shape[1];
  a.x = required("x", in, a.dtype, {a.m, a.channels});
  a.eps = eps;
  a.weight = wanted("weight", w, {a.channels});
  a.bias = wanted("bias", b, {a.channels});
  a.out = required("out", o, a.dtype, {a.m, a.channels});
  const Isa chosen = isa_of(isa);
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
