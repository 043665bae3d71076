#include "bridle/plan.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/attention_segments.h"
#include "bindings/bindings.h"
#include "bindings/residual_terms.h"
#include "bridle/record.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

PlanTensor plan_tensor(int32_t buffer, int64_t offset, const std::string& dtype, std::vector<int64_t> shape,
                       std::vector<int64_t> strides) {
  Strided layout;
  layout.dtype = dtype_named(dtype);
  layout.shape = std::move(shape);
  layout.strides = std::move(strides);
  return {buffer, offset, std::move(layout)};
}

// The bytes of a buffer, kept alive by what looks at them.
py::array_t<uint8_t> memory(const std::shared_ptr<Frame>& frame, int32_t buffer, int64_t bytes) {
  auto* const data = reinterpret_cast<uint8_t*>(frame->at(buffer));
  return py::array_t<uint8_t>({bytes}, {int64_t{1}}, data, py::cast(frame));
}

void bind_segments(Frame& frame, int32_t port, const py::list& segments, const PlanTensor& q) {
  std::vector<AttentionSegment> found = segments_of(segments, q.layout, q.layout.shape[0]);
  frame.bind_segments(port, std::move(found));
}

void bind_residuals(Frame& frame, int32_t port, const py::list& terms, const PlanTensor& x) {
  frame.bind_residuals(port, residual_terms(terms, residual_image(x.layout)));
}

void bind_frame(py::module_& module) {
  py::class_<Frame, std::shared_ptr<Frame>>(module, "Frame")
      .def(py::init([](const std::shared_ptr<Plan>& plan) { return std::make_shared<Frame>(plan); }), py::arg("plan"))
      .def_property_readonly("bytes", &Frame::bytes)
      .def("memory", &memory, py::arg("buffer"), py::arg("bytes"))
      .def("bind_segments", &bind_segments, py::arg("port"), py::arg("segments"), py::arg("q"))
      .def("bind_residuals", &bind_residuals, py::arg("port"), py::arg("terms"), py::arg("x"))
      .def("bind_rows", &Frame::bind_rows, py::arg("port"), py::arg("rows"))
      .def("run", &Frame::run, py::arg("pool"), py::call_guard<py::gil_scoped_release>())
      .def("profile", &Frame::profile, py::arg("pool"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_plan(py::module_& module) {
  py::class_<PlanTensor>(module, "PlanTensor")
      .def(py::init(&plan_tensor), py::arg("buffer"), py::arg("offset"), py::arg("dtype"), py::arg("shape"),
           py::arg("strides"));
  py::class_<Plan, std::shared_ptr<Plan>>(module, "Plan")
      .def(py::init<>())
      .def("add_buffer", &Plan::add_buffer, py::arg("bytes"))
      .def("add_input", &Plan::add_input, py::arg("bytes"))
      .def("add_constant", [](Plan& plan, uintptr_t data) { return plan.add_constant(reinterpret_cast<void*>(data)); })
      .def("add_row_port", &Plan::add_row_port)
      .def("keep", &Plan::keep, py::arg("buffer"))
      .def("finish", &Plan::finish)
      .def_property_readonly("arena_bytes", &Plan::arena_bytes)
      .def_property_readonly("total_bytes", &Plan::total_bytes)
      .def_property_readonly("nodes",
                             [](const Plan& plan) {
                               std::vector<std::string> names;
                               for (size_t i = 0; i < plan.nodes(); ++i) names.push_back(plan.node_name(i));
                               return names;
                             })
      .def("linear", &record_linear, py::arg("weights"), py::arg("x"), py::arg("out"), py::kw_only(), py::arg("bias"),
           py::arg("residual"), py::arg("activation"))
      .def("conv2d", &record_conv2d, py::arg("weights"), py::arg("sources"), py::arg("out"), py::kw_only(),
           py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("upsample"), py::arg("bias"),
           py::arg("shift"), py::arg("residual"), py::arg("activation"))
      .def("upsampled_conv2d", &record_upsampled_conv2d, py::arg("phases"), py::arg("sources"), py::arg("out"),
           py::kw_only(), py::arg("bias"), py::arg("shift"), py::arg("residual"), py::arg("activation"))
      .def("group_norm", &record_group_norm, py::arg("sources"), py::arg("out"), py::arg("weight"), py::arg("bias"),
           py::kw_only(), py::arg("groups"), py::arg("eps"), py::arg("activation"))
      .def("layer_norm", &record_layer_norm, py::arg("x"), py::arg("out"), py::arg("weight"), py::arg("bias"),
           py::kw_only(), py::arg("eps"))
      .def("own_attention", &record_own_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"),
           py::kw_only(), py::arg("scale"), py::arg("causal"), py::arg("float32_scores"), py::arg("row_port"))
      .def("bound_attention", &record_bound_attention, py::arg("q"), py::arg("out"), py::kw_only(), py::arg("scale"),
           py::arg("float32_scores"))
      .def("residual_add", &record_residual_add, py::arg("x"))
      .def("average_pool", &record_average_pool, py::arg("x"), py::arg("out"))
      .def("area_pool", &record_area_pool, py::arg("x"), py::arg("out"))
      .def("copy", &record_copy, py::arg("x"), py::arg("out"))
      .def("pointwise", &record_pointwise, py::arg("x"), py::arg("out"), py::kw_only(), py::arg("scale"),
           py::arg("shift"), py::arg("activation"))
      .def("embedding", &record_embedding, py::arg("ids"), py::arg("tokens"), py::arg("positions"), py::arg("out"))
      .def("end_token", &record_end_token, py::arg("x"), py::arg("ids"), py::arg("out"), py::kw_only(), py::arg("end"))
      .def("time_embedding", &record_time_embedding, py::arg("t"), py::arg("frequencies"), py::arg("out"),
           py::kw_only(), py::arg("cosines_first"));
  bind_frame(module);
}

}  // namespace bridle::python
