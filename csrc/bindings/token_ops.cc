#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/arguments.h"
#include "bindings/bindings.h"
#include "bridle/embedding.h"
#include "bridle/time_embedding.h"

namespace bridle::python {
namespace {

namespace py = pybind11;

// ids: [R, N] int64. tokens: [V, C]. positions: [N or more, C]. out: [R, N, C].
void run_embedding(ThreadPool& pool, const py::object& ids, const py::object& tokens, const py::object& positions,
                   const py::object& out) {
  const Borrowed i = borrow_integers("ids", ids), t = borrow("tokens", tokens), p = borrow("positions", positions),
                 o = borrow("out", out);
  const Embedding a = embedding_of(present("ids", i), present("tokens", t), present("positions", p), present("out", o));
  py::gil_scoped_release release;
  embedding(a, pool);
}

// x: [R, N, C]. ids: [R, N] int64. out: [R, C].
void run_end_token(ThreadPool& pool, const py::object& x, const py::object& ids, const py::object& out,
                   std::optional<int64_t> end) {
  const Borrowed from = borrow("x", x), i = borrow_integers("ids", ids), o = borrow("out", out);
  const EndToken a = end_token_of(present("x", from), present("ids", i), present("out", o), end);
  py::gil_scoped_release release;
  end_token(a, pool);
}

// t: [S]. frequencies: [C / 2]. out: [S, C].
void run_time_embedding(ThreadPool& pool, const py::object& t, const py::object& frequencies, const py::object& out,
                        bool cosines_first) {
  const Borrowed times = borrow("t", t), f = borrow("frequencies", frequencies), o = borrow("out", out);
  const TimeEmbedding a =
      time_embedding_of(present("t", times), present("frequencies", f), present("out", o), cosines_first);
  py::gil_scoped_release release;
  time_embedding(a, pool);
}

}  // namespace

void bind_token_ops(py::module_& module) {
  module.def("embedding", &run_embedding, py::arg("pool"), py::arg("ids"), py::arg("tokens"), py::arg("positions"),
             py::arg("out"));
  module.def("end_token", &run_end_token, py::arg("pool"), py::arg("x"), py::arg("ids"), py::arg("out"), py::kw_only(),
             py::arg("end"));
  module.def("time_embedding", &run_time_embedding, py::arg("pool"), py::arg("t"), py::arg("frequencies"),
             py::arg("out"), py::kw_only(), py::arg("cosines_first"));
}

}  // namespace bridle::python
