// Group normalisation of images with channels last, and layer normalisation.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "bridle/gemm.h"
#include "bridle/isa.h"
#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// activation(((x - mean) / sqrt(variance + eps) * weight + bias) * (1 + scale) + shift), mean and variance of each row
// and group of channels. float32 moments of 64 positions, merged in float64: the order depends on the number of
// positions alone.
struct GroupNorm {
  std::array<const void*, 2> sources =
      {};  // [R, positions, channels[i]], read as if concatenated; the second may be absent
  std::array<int64_t, 2> channels = {};
  int64_t rows = 0, positions = 0, groups = 0;
  double eps = 0;
  const float* weight = nullptr;  // [C]
  const float* bias = nullptr;    // [C]
  const float* scale = nullptr;   // [R, C] or absent
  const float* shift = nullptr;   // [R, C] or absent
  Activation activation = Activation::kNone;
  Dtype dtype = Dtype::kFloat32;
  void* out = nullptr;  // [R, positions, C]
};

// Bytes of `workspace`, aligned to 8.
size_t group_norm_workspace(const GroupNorm& arguments);

// Throws std::invalid_argument where groups do not divide the channels, or the dtype is not float32 or bfloat16.
void group_norm(const GroupNorm& arguments, std::byte* workspace, Isa isa, ThreadPool& pool);

// (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension of x [m, C].
struct LayerNorm {
  const void* x = nullptr;
  int64_t m = 0, channels = 0;
  double eps = 0;
  const float* weight = nullptr;  // [C]
  const float* bias = nullptr;    // [C]
  Dtype dtype = Dtype::kFloat32;
  void* out = nullptr;  // [m, C]
};

void layer_norm(const LayerNorm& arguments, Isa isa, ThreadPool& pool);

}  // namespace bridle
