#include "bindings/arguments.h"

#include <stdexcept>

namespace bridle::python {

void* compact(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape) {
  if (!tensor.owner) return nullptr;
  check_compact(name, tensor.tensor, dtype, shape);
  return tensor.tensor.data;
}

void* required(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape) {
  if (!tensor.owner) throw std::invalid_argument(std::string(name) + " is None");
  return compact(name, tensor, dtype, shape);
}

const Strided* optional(const Borrowed& tensor) { return tensor.owner ? &tensor.tensor : nullptr; }

const Strided& present(const char* name, const Borrowed& tensor) {
  if (!tensor.owner) throw std::invalid_argument(std::string(name) + " is None");
  return tensor.tensor;
}

Isa isa_or_active(const std::string& name) { return name.empty() ? active_isa() : isa_from_name(name); }

BorrowedList::BorrowedList(const char* name, const std::vector<pybind11::object>& objects) {
  for (const pybind11::object& object : objects) {
    owners.push_back(borrow(name, object));
    tensors.push_back(present(name, owners.back()));
  }
}

}  // namespace bridle::python
