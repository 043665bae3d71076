#include "bindings/attention_segments.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "bindings/dlpack.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

using Shape = std::vector<int64_t>;

Strided read(const char* name, const py::handle& tensor) {
  return borrow(name, py::reinterpret_borrow<py::object>(tensor)).tensor;
}

// A float32 tensor of that shape, or an absent one.
Strided floats(const char* name, const py::handle& tensor, const Shape& shape) {
  const Strided found = read(name, tensor);
  if (found && (found.dtype != Dtype::kFloat32 || found.shape != shape)) {
    throw std::invalid_argument(std::string(name) + " is " + text(found.shape) + ", wants float32 of " + text(shape));
  }
  return found;
}

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

AttentionPiece piece_of(const py::dict& from, const Sizes& n) {
  AttentionPiece piece{read("k", from["k"]), read("v", from["v"]), numbers<int32_t>(from, "lengths", n.rows)};
  for (const Strided* part : {&piece.k, &piece.v}) {
    if (part->shape.size() != 4 || part->shape[2] != n.heads || part->shape[3] != n.dim || part->strides[3] != 1) {
      throw std::invalid_argument("k and v want [rows, L, H, d] with consecutive channels");
    }
  }
  return piece;
}

AttentionMass mass_of(const py::dict& from, const Sizes& n) {
  AttentionMass mass;
  mass.count = from["count"].cast<int64_t>();
  mass.columns = numbers<int32_t>(from, "columns", n.rows * mass.count);
  mass.share = numbers<float>(from, "share", n.rows * mass.count);
  mass.window = read("window", from["window"]);
  mass.out = floats("mass.out", from["out"], {n.rows, n.heads, mass.count});
  return mass;
}

AttentionCapture capture_of(const py::dict& from) {
  AttentionCapture capture;
  capture.rows = from["rows"].cast<std::vector<int32_t>>();
  capture.columns = from["columns"].cast<std::vector<int32_t>>();
  capture.scale = numbers<float>(from, "scale", capture.rows.size());
  capture.out = read("capture.out", from["out"]);
  const size_t columns = capture.out.shape.back();
  if (!capture.columns.empty() && capture.columns.size() != capture.rows.size() * columns) {
    throw std::invalid_argument("capture.columns wants a number for every row and column of out");
  }
  return capture;
}

AttentionSegment segment_of(const py::dict& from, const Sizes& n) {
  AttentionSegment segment;
  int64_t keys = 0;
  for (const py::handle& piece : from["pieces"].cast<py::list>()) {
    segment.pieces.push_back(piece_of(piece.cast<py::dict>(), n));
    keys += segment.pieces.back().k.shape[1];
  }
  segment.q_rows = numbers<int32_t>(from, "q_rows", n.rows);
  segment.k_rows = numbers<int32_t>(from, "k_rows", n.rows);
  segment.v_rows = numbers<int32_t>(from, "v_rows", n.rows);
  segment.weight = from["weight"].cast<float>();
  segment.weights = floats("weights", from["weights"], {n.rows, n.queries});
  segment.bias = floats("bias", from["bias"], {n.rows, n.heads, n.queries, keys});
  segment.v_mix = read("v_mix", from["v_mix"]);
  segment.lse = floats("lse", from["lse"], {n.rows, n.heads, n.queries});
  if (!from["mass"].is_none()) segment.mass = mass_of(from["mass"].cast<py::dict>(), n);
  for (const py::handle& capture : from["captures"].cast<py::list>()) {
    segment.captures.push_back(capture_of(capture.cast<py::dict>()));
  }
  return segment;
}

}  // namespace

std::vector<AttentionSegment> segments_of(const py::list& segments, const Strided& q, int64_t rows) {
  std::vector<AttentionSegment> found;
  for (const py::handle& segment : segments) {
    found.push_back(segment_of(segment.cast<py::dict>(), {rows, q.shape[1], q.shape[2], q.shape[3]}));
  }
  return found;
}

}  // namespace bridle::python
