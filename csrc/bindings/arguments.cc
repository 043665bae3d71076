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
  if (!t) return nullptr;
  if (t.dtype != dtype) throw std::invalid_argument(std::string(name) + " has another dtype than is wanted");
  if (t.shape != shape) {
    throw std::invalid_argument(std::string(name) + " is " + text(t.shape) + ", wants " + text(shape));
  }
  for (int64_t i = static_cast<int64_t>(shape.size()) - 1, stride = 1; i >= 0; stride *= shape[i--]) {
    if (shape[i] > 1 && t.strides[i] != stride) throw std::invalid_argument(std::string(name) + " is not contiguous");
  }
  return t.data;
}

Activation activation_named(const std::string& name) {
  if (name.empty()) return Activation::kNone;
  if (name == "silu") return Activation::kSilu;
  throw std::invalid_argument("activation is '" + name + "', wants '' or silu");
}

}  // namespace bridle::python
