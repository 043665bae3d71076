#include "bridle/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/attention_segments.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bridle/aligned_buffer.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

// Everything is checked by bridle_kernels.attention, which also makes the plain lists of indices.
void attention(ThreadPool& pool, const py::object& q, const py::list& segments, const py::object& out,
               const std::vector<float>& gate, float scale, bool causal, bool float32_scores, bool accumulate,
               const std::string& isa) {
  const Borrowed left = borrow("q", q);
  AttentionArguments a;
  a.q = left.tensor;
  if (a.q.shape.size() != 4 || a.q.strides[3] != 1) {
    throw std::invalid_argument("q wants [R, N, H, d] with consecutive channels");
  }
  const Borrowed result = borrow("out", out);
  const int64_t rows = static_cast<int64_t>(gate.size());
  required("out", result, a.q.dtype, {rows, a.q.shape[1], a.q.shape[2] * a.q.shape[3]});
  a.out = result.tensor;
  a.segments = segments_of(segments, a.q, rows);
  a.gate = gate;
  a.scale = scale;
  a.causal = causal;
  a.float32_scores = float32_scores;
  a.accumulate = accumulate;
  const Isa chosen = isa_or_active(isa);
  py::gil_scoped_release release;
  PreparedAttention prepared(std::move(a), chosen);
  const AlignedBuffer memory(prepared.packed_bytes());
  prepared.pack(memory.data(), pool);
  prepared.attend(pool);
}

}  // namespace

void bind_attention(py::module_& module) {
  module.def("attention", &attention, py::arg("pool"), py::arg("q"), py::arg("segments"), py::arg("out"), py::kw_only(),
             py::arg("gate"), py::arg("scale"), py::arg("causal") = false, py::arg("float32_scores") = false,
             py::arg("accumulate") = false, py::arg("isa") = "");
}

}  // namespace bridle::python
