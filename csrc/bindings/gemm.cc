#include "bridle/gemm.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bridle/op_arguments.h"
#include "bridle/thread_pool.h"
#include "bridle/upsampled_conv2d.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

WeightFormat format(int64_t rows, const std::vector<int64_t>& widths, const std::string& dtype, const std::string& isa,
                    bool gated) {
  if (gated && rows % 2 != 0) throw std::invalid_argument("weight wants an even number of rows to be gated");
  return {gated ? rows / 2 : rows, widths, dtype_named(dtype), isa_or_active(isa), gated};
}

// weight: a tensor, or several whose rows follow each other. pool: None computes alone.
PackedWeights pack(const py::object& weight, const std::vector<int64_t>& widths, const std::string& dtype,
                   const std::string& isa, bool gated, ThreadPool* pool) {
  const bool several = py::isinstance<py::list>(weight);
  const BorrowedList weights("weight", several ? weight.cast<std::vector<py::object>>() : std::vector{weight});
  int64_t rows = 0;
  for (const Strided& part : weights.tensors) rows += part.shape.empty() ? 0 : part.shape[0];
  WeightFormat wanted = format(rows, widths, dtype, isa, gated);
  py::gil_scoped_release release;
  ThreadPool alone(1);
  return PackedWeights(std::move(wanted), weights.tensors, pool == nullptr ? alone : *pool);
}

// Keeps a Python object from threads that do not hold the GIL.
std::shared_ptr<const void> owner_of(py::object object) {
  return {new py::object(std::move(object)), [](py::object* held) {
            py::gil_scoped_acquire acquire;
            delete held;
          }};
}

// rows: of the weights that were packed.
PackedWeights packed_before(const py::buffer& packed, int64_t rows, const std::vector<int64_t>& widths,
                            const std::string& dtype, const std::string& isa, bool gated) {
  const py::buffer_info bytes = packed.request();
  return PackedWeights(format(rows, widths, dtype, isa, gated), static_cast<const std::byte*>(bytes.ptr),
                       static_cast<size_t>(bytes.size * bytes.itemsize), owner_of(packed));
}

py::array_t<uint8_t> memory(const std::shared_ptr<PackedWeights>& weights) {
  py::array_t<uint8_t> view(static_cast<py::ssize_t>(weights->bytes()),
                            reinterpret_cast<const uint8_t*>(weights->data()), py::cast(weights));
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

void linear(ThreadPool& pool, const PackedWeights& weights, const py::object& x, const py::object& out,
            const py::object& bias, const py::object& residual, const std::string& activation) {
  const Borrowed left = borrow("x", x), b = borrow("bias", bias), r = borrow("residual", residual),
                 o = borrow("out", out);
  const Strided& matrix = present("x", left);
  const int64_t m = linear_rows(weights, matrix);
  GemmArguments a =
      product_arguments(weights, 1, m, {optional(b), nullptr, optional(r), &present("out", o)}, activation);
  const MatrixRows rows(matrix.data, weights.widths()[0] * element_bytes(weights.dtype()));
  a.left = &rows;
  py::gil_scoped_release release;
  gemm(weights, a, pool);
}

// sources: [R, h, w, C] each. kernel: height, width. padding: left, right, top, bottom. out, residual: [R * h' * w',
// N]. upsample: height, width, or nothing.
void conv2d(ThreadPool& pool, const PackedWeights& weights, const std::vector<py::object>& sources,
            const py::object& out, const std::vector<int64_t>& kernel, int64_t stride,
            const std::vector<int64_t>& padding, const std::vector<int64_t>& upsample, const py::object& bias,
            const py::object& shift, const py::object& residual, const std::string& activation) {
  const Borrowed b = borrow("bias", bias), s = borrow("shift", shift), r = borrow("residual", residual),
                 o = borrow("out", out);
  const BorrowedList images("source", sources);
  const std::vector<ConvSource> inputs = conv_sources(weights, images.tensors);
  const ConvGeometry g = conv_geometry(images.tensors.front().shape, kernel, stride, padding, upsample);
  check_spans(weights, inputs, g);
  GemmArguments a = product_arguments(weights, g.rows, g.out_height * g.out_width,
                                      {optional(b), optional(s), optional(r), &present("out", o)}, activation);
  const ConvRows rows(inputs, g, weights.zeros(), element_bytes(weights.dtype()));
  a.left = &rows;
  py::gil_scoped_release release;
  gemm(weights, a, pool);
}

// phases: packed 2x2 taps for each parity of an output's line and column. sources: [R, h, w, C] each. out, residual:
// [R * 2 h * 2 w, N].
void upsampled_conv2d(ThreadPool& pool, const PhaseWeights& phases, const std::vector<py::object>& sources,
                      const py::object& out, const py::object& bias, const py::object& shift,
                      const py::object& residual, const std::string& activation) {
  const Borrowed b = borrow("bias", bias), s = borrow("shift", shift), r = borrow("residual", residual),
                 o = borrow("out", out);
  const BorrowedList images("source", sources);
  const std::vector<ConvSource> inputs = phase_sources(phases, images.tensors);
  const std::vector<int64_t>& shape = images.tensors.front().shape;
  const GemmArguments whole =
      whole_arguments(phases, shape, {optional(b), optional(s), optional(r), &present("out", o)}, activation);
  py::gil_scoped_release release;
  for (int64_t i = 0; i < kPhases; ++i) {
    const ConvGeometry g = phase_geometry(shape, i);
    const ConvRows rows(inputs, g, phases[i]->zeros(), element_bytes(phases[i]->dtype()));
    GemmArguments a = phase_arguments(whole, g, i);
    a.left = &rows;
    gemm(*phases[i], a, pool);
  }
}

}  // namespace

void bind_gemm(py::module_& module) {
  py::class_<ThreadPool>(module, "ThreadPool")
      .def(py::init<int, bool>(), py::arg("threads"), py::arg("pinned") = false)
      .def_property_readonly("threads", &ThreadPool::threads);
  py::class_<PackedWeights, std::shared_ptr<PackedWeights>>(module, "PackedWeights")
      .def(py::init(&pack), py::arg("weight"), py::arg("widths"), py::arg("dtype") = "float32", py::arg("isa") = "",
           py::arg("gated") = false, py::arg("pool") = nullptr)
      .def_static("packed_before", &packed_before, py::arg("packed"), py::arg("rows"), py::arg("widths"),
                  py::arg("dtype") = "float32", py::arg("isa") = "", py::arg("gated") = false)
      .def_property_readonly("bytes", &PackedWeights::bytes)
      .def_property_readonly("memory", &memory);
  module.def(
      "weight_layout",
      [](const std::string& dtype, const std::string& isa) {
        return PackedWeights::layout(dtype_named(dtype), isa_or_active(isa));
      },
      py::arg("dtype"), py::arg("isa") = "");
  module.def("linear", &linear, py::arg("pool"), py::arg("weights"), py::arg("x"), py::arg("out"), py::kw_only(),
             py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("activation") = "");
  module.def("conv2d", &conv2d, py::arg("pool"), py::arg("weights"), py::arg("sources"), py::arg("out"), py::kw_only(),
             py::arg("kernel"), py::arg("stride") = 1, py::arg("padding") = std::vector<int64_t>{1, 1, 1, 1},
             py::arg("upsample") = std::vector<int64_t>{}, py::arg("bias") = py::none(), py::arg("shift") = py::none(),
             py::arg("residual") = py::none(), py::arg("activation") = "");
  module.def("upsampled_conv2d", &upsampled_conv2d, py::arg("pool"), py::arg("phases"), py::arg("sources"),
             py::arg("out"), py::kw_only(), py::arg("bias") = py::none(), py::arg("shift") = py::none(),
             py::arg("residual") = py::none(), py::arg("activation") = "");
}

}  // namespace bridle::python
