// NormKernels as plain loops over channels, which the flags of each variant vectorise. FMA contraction is off and sums
// run over positions, so all variants give the same bits, but for layer normalisation's sums over lanes, which are
// fixed too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/element.h"
#include "ops/exponential.h"
#include "ops/norm/norm_kernels.h"

namespace bridle {
namespace {

constexpr int64_t kStrip = 64;
constexpr int64_t kLayerLanes = 32;

template <class Element>
struct NormLoops {
  using Stored = typename Element::Stored;

  // A strip of channels at a time, twice: deviations from the strip's own means do not cancel.
  static void moments(const void* from, int64_t positions, int64_t channels, Moments* out) {
    const auto* x = static_cast<const Stored*>(from);
    for (int64_t c = 0; c < channels; c += kStrip)
      strip(x + c, positions, channels, std::min(kStrip, channels - c), out + c);
  }

  static void apply(const void* from, int64_t positions, int64_t channels, const float* mean, const float* factor,
                    const float* offset, Activation activation, void* to, int64_t stride) {
    const auto* x = static_cast<const Stored*>(from);
    auto* out = static_cast<Stored*>(to);
    for (int64_t p = 0; p < positions; ++p, x += channels, out += stride) {
      if (activation == Activation::kSilu) {
        for (int64_t c = 0; c < channels; ++c) {
          out[c] = Element::narrow(silu((Element::widen(x[c]) - mean[c]) * factor[c] + offset[c]));
        }
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          out[c] = Element::narrow((Element::widen(x[c]) - mean[c]) * factor[c] + offset[c]);
        }
      }
    }
  }

  static void layer(const void* from, int64_t channels, double eps, const float* weight, const float* bias, void* to) {
    const auto* x = static_cast<const Stored*>(from);
    auto* out = static_cast<Stored*>(to);
    // Differences from one of the values: what is constant then has no rounding at all.
    const float origin = Element::widen(x[0]);
    const double exact = origin + total(x, channels, [origin](float v) { return v - origin; }) / channels;
    const float mean = static_cast<float>(exact);
    const double rest = mean - exact;
    const double squares = total(x, channels, [mean](float v) { return (v - mean) * (v - mean); }) / channels;
    const double inverse = 1.0 / std::sqrt(std::max(0.0, squares - rest * rest) + eps);
    const auto factor = static_cast<float>(inverse), left = static_cast<float>(rest * inverse);
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = Element::narrow(((Element::widen(x[c]) - mean) * factor + left) * weight[c] + bias[c]);
    }
  }

  static constexpr NormKernels kernels() { return {moments, apply, layer}; }

 private:
  static void strip(const Stored* x, int64_t positions, int64_t stride, int64_t count, Moments* out) {
    float origin[kStrip], mean[kStrip] = {}, deviation[kStrip] = {};
    for (int64_t c = 0; c < count; ++c) origin[c] = Element::widen(x[c]);
    for (int64_t p = 1; p < positions; ++p) {
      for (int64_t c = 0; c < count; ++c) mean[c] += Element::widen(x[p * stride + c]) - origin[c];
    }
    for (int64_t c = 0; c < count; ++c) mean[c] = origin[c] + mean[c] / static_cast<float>(positions);
    for (int64_t p = 0; p < positions; ++p) {
      for (int64_t c = 0; c < count; ++c) {
        const float d = Element::widen(x[p * stride + c]) - mean[c];
        deviation[c] += d * d;
      }
    }
    for (int64_t c = 0; c < count; ++c) out[c] = {mean[c], deviation[c]};
  }

  // The sum of f(x), in lanes that are added up in float64 at the end.
  template <class F>
  static double total(const Stored* x, int64_t count, F f) {
    float lanes[kLayerLanes] = {};
    int64_t i = 0;
    for (; i + kLayerLanes <= count; i += kLayerLanes) {
      for (int64_t lane = 0; lane < kLayerLanes; ++lane) lanes[lane] += f(Element::widen(x[i + lane]));
    }
    for (int64_t lane = 0; i + lane < count; ++lane) lanes[lane] += f(Element::widen(x[i + lane]));
    double sum = 0;
    for (const float lane : lanes) sum += lane;
    return sum;
  }
};

inline const NormKernels& norm_kernels(Dtype dtype) {
  static constexpr NormKernels kFloat32 = NormLoops<Float32>::kernels(), kBFloat16 = NormLoops<BFloat16>::kernels();
  return dtype == Dtype::kFloat32 ? kFloat32 : kBFloat16;
}

}  // namespace
}  // namespace bridle
