// A tensor somebody else owns: any strides, in elements, also zero and negative ones.
#pragma once

#include <cstdint>
#include <vector>

namespace bridle {

enum class Dtype { kFloat32, kFloat16, kBFloat16, kInt64 };

constexpr int64_t element_bytes(Dtype dtype) {
  if (dtype == Dtype::kInt64) return 8;
  return dtype == Dtype::kFloat32 ? 4 : 2;
}

struct Strided {
  void* data = nullptr;  // nullptr = absent
  Dtype dtype = Dtype::kFloat32;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;

  explicit operator bool() const { return data != nullptr; }
};

}  // namespace bridle
