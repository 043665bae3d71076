#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bindings/residual_terms.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

// x: [R, positions, C], is added to.
void run_residual_add(ThreadPool& pool, const py::object& x, const py::list& terms, const std::string& isa) {
  const Borrowed target = borrow("x", x);
  const ResidualImage image = residual_image(target.tensor);
  const std::vector<ResidualTerm> found = residual_terms(terms, image);
  const Isa chosen = isa_or_active(isa);
  py::gil_scoped_release release;
  residual_add(image, found, chosen, pool);
}

}  // namespace

void bind_residual_add(py::module_& module) {
  module.def("residual_add", &run_residual_add, py::arg("pool"), py::arg("x"), py::arg("terms"), py::kw_only(),
             py::arg("isa") = "");
}

}  // namespace bridle::python
