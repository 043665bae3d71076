// activation(scale * x + shift) of every element.
#pragma once

#include <cstdint>
#include <string>

#include "bridle/gemm.h"
#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// x, out: `count` elements of float32 or bfloat16; out may be x. Computed in float32, rounded once.
struct Pointwise {
  const void* x = nullptr;
  void* out = nullptr;
  int64_t count = 0;
  Dtype dtype = Dtype::kFloat32;
  float scale = 1.0f, shift = 0.0f;
  Activation activation = Activation::kNone;
};

// x, out: compact, of one shape. Throws std::invalid_argument for what does not fit.
Pointwise pointwise_of(const Strided& x, const Strided& out, double scale, double shift, const std::string& activation);

void pointwise(const Pointwise& arguments, ThreadPool& pool);

}  // namespace bridle
