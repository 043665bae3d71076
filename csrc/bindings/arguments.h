// Arguments of ops from Python, checked by name.
#pragma once

#include <string>
#include <vector>

#include "bindings/dlpack.h"
#include "bridle/checks.h"
#include "bridle/isa.h"

namespace bridle::python {

// A compact tensor of that shape and dtype, or nullptr for None. Throws std::invalid_argument otherwise.
void* compact(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// The same where None is refused too.
void* required(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// Several tensors, none of them None.
struct BorrowedList {
  std::vector<Borrowed> owners;
  std::vector<Strided> tensors;

  BorrowedList(const char* name, const std::vector<pybind11::object>& objects);
};

// A tensor, or nullptr for None.
const Strided* optional(const Borrowed& tensor);

// A tensor. Throws std::invalid_argument for None.
const Strided& present(const char* name, const Borrowed& tensor);

// A variant by name, or the active one for "".
Isa isa_or_active(const std::string& name);

}  // namespace bridle::python
