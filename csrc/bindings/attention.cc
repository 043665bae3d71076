#include "bridle/attention.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

using Shape = std::vector<int64_t>;

// Reads the tensors of a call and keeps their memory alive.
class Reader {
 public:
  Strided read(const char* name, const py::handle& tensor) {
    borrowed_.push_back(borrow(name, py::reinterpret_borrow<py::object>(tensor)));
    return borrowed_.back().tensor;
  }

  // A float32 tensor of that shape, or an absent one.
  Strided floats(const char* name, const py::handle& tensor, const Shape& shape) {
    const Strided found = read(name, tensor);
    if (found && (found.dtype != Dtype::kFloat32 || found.shape != shape)) {
      throw std::invalid_argument(std::string(name) + " is " + text(found.shape) + ", wants float32 of " + text(shape));
    }
    return found;
  }

 private:
  std::vector<Borrowed> borrowed_;
};

template <class T>
std::vector<T> numbers(const py::dict& from, const char* name, size_t count) {
  auto found = from[name].cast<std::vector<T>>();
  if (found.size() != count) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(found.size()) + " numbers, wants " +
                                std::to_string(count));
  }
  return found;
}

struct Sizes {
  int64_t rows, queries, heads, dim;
};

AttentionPiece piece_of(Reader& reader, const py::dict& from, const Sizes& n) {
  AttentionPiece piece{reader.read("k", from["k"]), reader.read("v", from["v"]),
                       numbers<int32_t>(from, "lengths", n.rows)};
  for (const Strided* part : {&piece.k, &piece.v}) {
    if (part->shape.size() != 4 || part->shape[2] != n.heads || part->shape[3] != n.dim || part->strides[3] != 1) {
      throw std::invalid_argument("k and v want [rows, L, H, d] with consecutive channels");
    }
  }
  return piece;
}

AttentionMass mass_of(Reader& reader, const py::dict& from, const Sizes& n) {
  AttentionMass mass;
  mass.count = from["count"].cast<int64_t>();
  mass.columns = numbers<int32_t>(from, "columns", n.rows * mass.count);
  mass.share = numbers<float>(from, "share", n.rows * mass.count);
  mass.window = reader.read("window", from["window"]);
  mass.out = reader.floats("mass.out", from["out"], {n.rows, n.heads, mass.count});
  return mass;
}

AttentionCapture capture_of(Reader& reader, const py::dict& from) {
  AttentionCapture capture;
  capture.rows = from["rows"].cast<std::vector<int32_t>>();
  capture.columns = from["columns"].cast<std::vector<int32_t>>();
  capture.scale = numbers<float>(from, "scale", capture.rows.size());
  capture.out = reader.read("capture.out", from["out"]);
  const size_t columns = capture.out.shape.back();
  if (!capture.columns.empty() && capture.columns.size() != capture.rows.size() * columns) {
    throw std::invalid_argument("capture.columns wants a number for every row and column of out");
  }
  return capture;
}

AttentionSegment segment_of(Reader& reader, const py::dict& from, const Sizes& n) {
  AttentionSegment segment;
  int64_t keys = 0;
  for (const py::handle& piece : from["pieces"].cast<py::list>()) {
    segment.pieces.push_back(piece_of(reader, piece.cast<py::dict>(), n));
    keys += segment.pieces.back().k.shape[1];
  }
  segment.q_rows = numbers<int32_t>(from, "q_rows", n.rows);
  segment.k_rows = numbers<int32_t>(from, "k_rows", n.rows);
  segment.v_rows = numbers<int32_t>(from, "v_rows", n.rows);
  segment.weight = from["weight"].cast<float>();
  segment.weights = reader.floats("weights", from["weights"], {n.rows, n.queries});
  segment.bias = reader.floats("bias", from["bias"], {n.rows, n.heads, n.queries, keys});
  segment.v_mix = reader.read("v_mix", from["v_mix"]);
  segment.lse = reader.floats("lse", from["lse"], {n.rows, n.heads, n.queries});
  if (!from["mass"].is_none()) segment.mass = mass_of(reader, from["mass"].cast<py::dict>(), n);
  for (const py::handle& capture : from["captures"].cast<py::list>()) {
    segment.captures.push_back(capture_of(reader, capture.cast<py::dict>()));
  }
  return segment;
}

// Everything is checked by bridle_kernels.attention, which also makes the plain lists of indices.
void run_attention(ThreadPool& pool, const py::object& q, const py::list& segments, const py::object& out,
                   const std::vector<float>& gate, float scale, bool causal, bool float32_scores, bool accumulate,
                   const std::string& isa) {
  Reader reader;
  AttentionArguments a;
  a.q = reader.read("q", q);
  if (a.q.shape.size() != 4 || a.q.strides[3] != 1) {
    throw std::invalid_argument("q wants [R, N, H, d] with consecutive channels");
  }
  const Sizes n{static_cast<int64_t>(gate.size()), a.q.shape[1], a.q.shape[2], a.q.shape[3]};
  const Borrowed result = borrow("out", out);
  required("out", result, a.q.dtype, {n.rows, n.queries, n.heads * n.dim});
  a.out = result.tensor;
  for (const py::handle& segment : segments) {
    a.segments.push_back(segment_of(reader, segment.cast<py::dict>(), n));
  }
  a.gate = gate;
  a.scale = scale;
  a.causal = causal;
  a.float32_scores = float32_scores;
  a.accumulate = accumulate;
  const Isa chosen = isa.empty() ? active_isa() : isa_from_name(isa);
  py::gil_scoped_release release;
  attention(a, chosen, pool);
}

}  // namespace

void bind_attention(py::module_& module) {
  module.def("attention", &run_attention, py::arg("pool"), py::arg("q"), py::arg("segments"), py::arg("out"),
             py::kw_only(), py::arg("gate"), py::arg("scale"), py::arg("causal") = false,
             py::arg("float32_scores") = false, py::arg("accumulate") = false, py::arg("isa") = "");
}

}  // namespace bridle::python
