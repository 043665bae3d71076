#include "bindings/residual_terms.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "bindings/arguments.h"
#include "bindings/dlpack.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

Strided read(const char* name, const py::object& tensor) { return borrow(name, tensor).tensor; }

ResidualTerm residual_term(const py::dict& from, const ResidualImage& image) {
  ResidualTerm term;
  term.rows = from["rows"].cast<std::vector<int32_t>>();
  term.scale = from["scale"].cast<std::vector<float>>();
  for (const int32_t row : term.rows) {
    if (row < 0 || row >= image.rows) {
      throw std::invalid_argument("residual_add: a row is " + std::to_string(row) + ", wants one of " +
                                  std::to_string(image.rows));
    }
  }
  const auto count = static_cast<int64_t>(term.rows.size());
  if (term.scale.size() != term.rows.size()) throw std::invalid_argument("residual_add: scale wants one per row");
  const Strided values = read("values", from["values"]);
  const auto fits = [&](size_t i, int64_t wanted) { return values.shape[i] == wanted || values.shape[i] == 1; };
  if (values.dtype != image.dtype || values.shape.size() != 3 || !fits(0, count) || !fits(1, image.positions) ||
      values.shape[2] != image.channels || values.strides[2] != 1) {
    throw std::invalid_argument("residual_add: values is " + text(values.shape) + ", wants " +
                                text({count, image.positions, image.channels}) + " of x's dtype");
  }
  term.values = values.data;
  term.row_stride = values.shape[0] == 1 ? 0 : values.strides[0];
  term.position_stride = values.shape[1] == 1 ? 0 : values.strides[1];
  const Strided mask = read("mask", from["mask"]);
  if (!mask) return term;
  if (mask.dtype != Dtype::kFloat32 || mask.shape != std::vector<int64_t>{count, image.positions} ||
      (image.positions > 1 && mask.strides[1] != 1)) {
    throw std::invalid_argument("residual_add: mask is " + text(mask.shape) + ", wants float32 of " +
                                text({count, image.positions}));
  }
  term.mask = static_cast<const float*>(mask.data);
  term.mask_stride = mask.strides[0];
  return term;
}

}  // namespace

std::vector<ResidualTerm> residual_terms(const py::list& terms, const ResidualImage& image) {
  std::vector<ResidualTerm> found;
  for (const py::handle& term : terms) found.push_back(residual_term(term.cast<py::dict>(), image));
  return found;
}

}  // namespace bridle::python
