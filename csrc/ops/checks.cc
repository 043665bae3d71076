#include "bridle/checks.h"

#include <stdexcept>

namespace bridle {

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

void check_compact(const char* name, const Strided& t, Dtype dtype, const std::vector<int64_t>& shape) {
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
}

void check_floats(const char* name, const Strided& t) {
  if (t.dtype != Dtype::kFloat32 && t.dtype != Dtype::kBFloat16) {
    throw std::invalid_argument(std::string(name) + " wants float32 or bfloat16");
  }
}

Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "bfloat16") return Dtype::kBFloat16;
  if (name == "int64") return Dtype::kInt64;
  throw std::invalid_argument("dtype is '" + name + "', wants float32, bfloat16 or int64");
}

Activation activation_named(const std::string& name) {
  if (name.empty()) return Activation::kNone;
  if (name == "silu") return Activation::kSilu;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "quick_gelu") return Activation::kQuickGelu;
  if (name == "tanh") return Activation::kTanh;
  throw std::invalid_argument("activation is '" + name + "', wants '', silu, relu, gelu, quick_gelu or tanh");
}

}  // namespace bridle
