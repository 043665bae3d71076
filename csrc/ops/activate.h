// Activations of float32 values in place, in plain loops that every variant's compiler flags vectorise.
#pragma once

#include <cstdint>

#include "bridle/gemm.h"
#include "ops/exponential.h"

namespace bridle {
namespace {

inline void activate(Activation kind, float* values, int64_t count) {
  if (kind == Activation::kSilu) {
    for (int64_t i = 0; i < count; ++i) values[i] = silu(values[i]);
  } else if (kind == Activation::kRelu) {
    for (int64_t i = 0; i < count; ++i) values[i] = values[i] < 0.0f ? 0.0f : values[i];
  } else if (kind == Activation::kGelu) {
    for (int64_t i = 0; i < count; ++i) values[i] = gelu(values[i]);
  } else if (kind == Activation::kQuickGelu) {
    for (int64_t i = 0; i < count; ++i) values[i] = quick_gelu(values[i]);
  } else if (kind == Activation::kTanh) {
    for (int64_t i = 0; i < count; ++i) values[i] = hyperbolic_tangent(values[i]);
  }
}

}  // namespace
}  // namespace bridle
