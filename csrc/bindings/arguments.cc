#include "bindings/arguments.h"

#include <stdexcept>

namespace bridle::python {

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

void* compact(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape) {
  const Strided& t = tensor.tensor;
  if (!tensor.owner) return nullptr;
  if (t.dtype != dtype) throw std::invalid_argument(std::string(name) + " has another dtype than is wanted");
  if (t.shape != shape) {
    throw std::invalid_argument(std::string(name) + " is " + text(t.shape) + ", wants " + text(shape));
  }
  int64_t elements = 1;
  for (const int64_t side : shape) elements *= side;
  for (int64_t i = elements == 0 ? -1 : static_cast<int64_t>(shape.size()) - 1, stride = 1; i >= 0;
       stride *= shape[i--]) {
    if (shape[i] > 1 && t.strides[i] != stride) throw std::invalid_argument(std::string(name) + " is not contiguous");
  }
  return t.data;
}

void* required(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape) {
  if (!tensor.owner) throw std::invalid_argument(std::string(name) + " is None");
  return compact(name, tensor, dtype, shape);
}

Activation activation_named(const std::string& name) {
  if (name.empty()) return Activation::kNone;
  if (name == "silu") return Activation::kSilu;
  throw std::invalid_argument("activation is '" + name + "', wants '' or silu");
}

}  // namespace bridle::python
