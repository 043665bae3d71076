#include "bridle/gemm.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bridle/conv2d.h"
#include "bridle/thread_pool.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

int64_t bytes_of(const PackedWeights& weights) { return weights.dtype() == Dtype::kFloat32 ? 4 : 2; }

PackedWeights pack(const py::object& weight, const std::vector<int64_t>& widths, const std::string& dtype,
                   const std::string& isa, bool gated) {
  const Borrowed borrowed = borrow("weight", weight);
  const int64_t rows = borrowed.tensor.shape.empty() ? 0 : borrowed.tensor.shape[0];
  if (gated && rows % 2 != 0) throw std::invalid_argument("weight wants an even number of rows to be gated");
  int64_t k = 0;
  for (const int64_t width : widths) k += width;
  const auto* data = static_cast<const float*>(required("weight", borrowed, Dtype::kFloat32, {rows, k}));
  const Isa chosen = isa.empty() ? active_isa() : isa_from_name(isa);
  py::gil_scoped_release release;
  return PackedWeights(data, gated ? rows / 2 : rows, widths, dtype_named(dtype), chosen, gated);
}

// What linear and conv2d take beyond their left operand.
struct Epilogue {
  Borrowed bias, shift, residual, out;

  GemmArguments arguments(const PackedWeights& weights, int64_t images, int64_t positions,
                          Activation activation) const {
    GemmArguments a;
    const int64_t m = images * positions;
    a.m = m;
    a.positions = positions;
    a.bias = static_cast<const float*>(compact("bias", bias, Dtype::kFloat32, {weights.biases()}));
    a.shift = shifts(images, weights.n());
    a.shift_stride = a.shift == nullptr ? 0 : shift.tensor.strides[0];
    a.residual = compact("residual", residual, weights.dtype(), {m, weights.n()});
    a.out = required("out", out, weights.dtype(), {m, weights.n()});
    a.residual_stride = a.out_stride = weights.n();
    a.activation = activation;
    return a;
  }

 private:
  // Rows may lie apart: they are columns of a table.
  const float* shifts(int64_t images, int64_t outputs) const {
    const Strided& s = shift.tensor;
    if (!shift.owner) return nullptr;
    if (s.dtype != Dtype::kFloat32 || s.shape != std::vector<int64_t>{images, outputs} || s.strides[1] != 1) {
      throw std::invalid_argument("shift is " + text(s.shape) + ", wants float32 of " + text({images, outputs}) +
                                  " with consecutive channels");
    }
    return static_cast<const float*>(s.data);
  }
};

void linear(ThreadPool& pool, const PackedWeights& weights, const py::object& x, const py::object& out,
            const py::object& bias, const py::object& residual, const std::string& activation) {
  const Borrowed left = borrow("x", x);
  if (left.tensor.shape.size() != 2 || weights.widths().size() != 1) throw std::invalid_argument("x wants [m, K]");
  const int64_t m = left.tensor.shape[0], k = weights.widths()[0];
  const void* data = required("x", left, weights.dtype(), {m, k});
  const Epilogue epilogue{borrow("bias", bias), {}, borrow("residual", residual), borrow("out", out)};
  GemmArguments a = epilogue.arguments(weights, 1, m, activation_named(activation));
  const MatrixRows rows(data, k * bytes_of(weights));
  a.left = &rows;
  py::gil_scoped_release release;
  gemm(weights, a, pool);
}

// sources: [R, h, w, C] each. kernel: height, width. padding: left, right, top, bottom. out, residual: [R * h' * w',
// N].
void conv2d(ThreadPool& pool, const PackedWeights& weights, const std::vector<py::object>& sources,
            const py::object& out, const std::vector<int64_t>& kernel, int64_t stride,
            const std::vector<int64_t>& padding, int64_t upsample, const py::object& bias, const py::object& shift,
            const py::object& residual, const std::string& activation) {
  std::vector<Borrowed> borrowed;
  std::vector<ConvSource> inputs;
  for (const py::object& source : sources) {
    borrowed.push_back(borrow("source", source));
    const std::vector<int64_t>& shape = borrowed.back().tensor.shape;
    if (shape.size() != 4) throw std::invalid_argument("source is " + text(shape) + ", wants [R, h, w, C]");
    std::vector<int64_t> wanted = borrowed.front().tensor.shape;
    wanted[3] = shape[3];
    inputs.push_back({required("source", borrowed.back(), weights.dtype(), wanted), shape[3]});
  }
  if (inputs.empty()) throw std::invalid_argument("sources is empty");
  const ConvGeometry g = conv_geometry(borrowed.front().tensor.shape, kernel, stride, padding, upsample);
  check_spans(weights, inputs, g);
  const Epilogue epilogue{borrow("bias", bias), borrow("shift", shift), borrow("residual", residual),
                          borrow("out", out)};
  GemmArguments a = epilogue.arguments(weights, g.rows, g.out_height * g.out_width, activation_named(activation));
  py::gil_scoped_release release;
  const ConvRows rows(inputs, g, weights.zeros(), bytes_of(weights));
  a.left = &rows;
  gemm(weights, a, pool);
}

}  // namespace

void bind_gemm(py::module_& module) {
  py::class_<ThreadPool>(module, "ThreadPool")
      .def(py::init<int>(), py::arg("threads"))
      .def_property_readonly("threads", &ThreadPool::threads);
  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(module, "PackedWeights")
      .def(py::init(&pack), py::arg("weight"), py::arg("widths"), py::arg("dtype") = "float32", py::arg("isa") = "",
           py::arg("gated") = false)
      .def_property_readonly("bytes", &PackedWeights::bytes);
  module.def("linear", &linear, py::arg("pool"), py::arg("weights"), py::arg("x"), py::arg("out"), py::kw_only(),
             py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("activation") = "");
  module.def("conv2d", &conv2d, py::arg("pool"), py::arg("weights"), py::arg("sources"), py::arg("out"), py::kw_only(),
             py::arg("kernel"), py::arg("stride") = 1, py::arg("padding") = std::vector<int64_t>{1, 1, 1, 1},
             py::arg("upsample") = 1, py::arg("bias") = py::none(), py::arg("shift") = py::none(),
             py::arg("residual") = py::none(), py::arg("activation") = "");
}

}  // namespace bridle::python
