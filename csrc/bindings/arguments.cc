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

}  // namespace bridle::python
