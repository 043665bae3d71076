#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/residual_terms.h"
#include "bridle/upsample.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

// x: [R, positions, C], is added to.
void run_residual_add(ThreadPool& pool, const py::object& x, const py::list& terms) {
  const Borrowed target = borrow("x", x);
  const ResidualImage image = residual_image(target.tensor);
  const std::vector<ResidualTerm> found = residual_terms(terms, image);
  py::gil_scoped_release release;
  residual_add(image, found, pool);
}

// x: [R, h, w, C]. out: [R, h', w', C].
void run_upsample(ThreadPool& pool, const py::object& x, const py::object& out) {
  const Borrowed from = borrow("x", x), to = borrow("out", out);
  const Upsample a = upsample_of(from.tensor, to.tensor);
  py::gil_scoped_release release;
  upsample(a, pool);
}

}  // namespace

void bind_image_ops(py::module_& module) {
  module.def("residual_add", &run_residual_add, py::arg("pool"), py::arg("x"), py::arg("terms"));
  module.def("upsample", &run_upsample, py::arg("pool"), py::arg("x"), py::arg("out"));
}

}  // namespace bridle::python
