#include <pybind11/pybind11.h>

#include <string>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bridle/average_pool.h"
#include "bridle/copy.h"
#include "bridle/pointwise.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

// Runs an op whose arguments `make` takes from x and out.
template <class Arguments>
void run_unary(ThreadPool& pool, const py::object& x, const py::object& out,
               Arguments (*make)(const Strided&, const Strided&), void (*run)(const Arguments&, ThreadPool&)) {
  const Borrowed from = borrow("x", x), to = borrow("out", out);
  const Arguments a = make(present("x", from), present("out", to));
  py::gil_scoped_release release;
  run(a, pool);
}

// x: [R, h, w, C]. out: [R, h', w', C].
void run_average_pool(ThreadPool& pool, const py::object& x, const py::object& out) {
  run_unary(pool, x, out, &halving_pool_of, &average_pool);
}

void run_area_pool(ThreadPool& pool, const py::object& x, const py::object& out) {
  run_unary(pool, x, out, &area_pool_of, &average_pool);
}

// x, out: any strides, one shape.
void run_copy(ThreadPool& pool, const py::object& x, const py::object& out) {
  const Borrowed from = borrow_elements("x", x), to = borrow_elements("out", out);
  const Copy a = copy_of(present("x", from), present("out", to));
  py::gil_scoped_release release;
  copy(a, pool);
}

// x, out: one shape.
void run_pointwise(ThreadPool& pool, const py::object& x, const py::object& out, double scale, double shift,
                   const std::string& activation) {
  const Borrowed from = borrow("x", x), to = borrow("out", out);
  const Pointwise a = pointwise_of(present("x", from), present("out", to), scale, shift, activation);
  py::gil_scoped_release release;
  pointwise(a, pool);
}

}  // namespace

void bind_image_ops(py::module_& module) {
  module.def("average_pool", &run_average_pool, py::arg("pool"), py::arg("x"), py::arg("out"));
  module.def("area_pool", &run_area_pool, py::arg("pool"), py::arg("x"), py::arg("out"));
  module.def("copy", &run_copy, py::arg("pool"), py::arg("x"), py::arg("out"));
  module.def("pointwise", &run_pointwise, py::arg("pool"), py::arg("x"), py::arg("out"), py::kw_only(),
             py::arg("scale") = 1.0, py::arg("shift") = 0.0, py::arg("activation") = "");
}

}  // namespace bridle::python
