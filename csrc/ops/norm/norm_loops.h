// NormKernels in the vectors of a variant: sums stay in registers, and tails are plain loops. FMA contraction is off
// and sums run over positions, so all variants give the same bits, but for layer normalisation's sums over lanes, which
// are fixed too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/element.h"
#include "ops/exponential.h"
#include "ops/norm/norm_kernels.h"
#include "ops/vector.h"

namespace bridle {
namespace {

constexpr int64_t kVectors = 4;  // sums at a time, which hide the latency of an addition
constexpr int64_t kStrip = kVectors * kLanes;
constexpr int64_t kLayerLanes = 64;
static_assert(kLayerLanes % kStrip == 0);

template <class Element>
struct NormLoops {
  using Stored = typename Element::Stored;

  // A strip of channels at a time, twice: deviations from the strip's own means do not cancel.
  static void moments(const void* from, int64_t positions, int64_t channels, Moments* out) {
    const auto* x = static_cast<const Stored*>(from);
    int64_t c = 0;
    for (; c + kStrip <= channels; c += kStrip) strip(x + c, positions, channels, out + c);
    for (; c < channels; ++c) channel(x + c, positions, channels, out + c);
  }

  static void apply(const void* from, int64_t positions, int64_t channels, const float* mean, const float* factor,
                    const float* offset, Activation activation, void* to, int64_t stride) {
    const auto* x = static_cast<const Stored*>(from);
    auto* out = static_cast<Stored*>(to);
    for (int64_t p = 0; p < positions; ++p, x += channels, out += stride) {
      const auto scaled = [=]<class T>(T value, int64_t c) -> T {
        return (value - read<T>(mean + c)) * read<T>(factor + c) + read<T>(offset + c);
      };
      if (activation == Activation::kSilu) {
        transform<Element, Element>(x, channels, out, [=](auto value, int64_t c) { return silu(scaled(value, c)); });
      } else {
        transform<Element, Element>(x, channels, out, scaled);
      }
    }
  }

  static void layer(const void* from, int64_t channels, double eps, const float* weight, const float* bias, void* to) {
    const auto* x = static_cast<const Stored*>(from);
    auto* out = static_cast<Stored*>(to);
    // Differences from one of the values: what is constant then has no rounding at all.
    const float origin = Element::widen(x[0]);
    const double exact = origin + total(x, channels, [origin](auto v) { return v - origin; }) / channels;
    const float mean = static_cast<float>(exact);
    const double rest = mean - exact;
    const double squares = total(x, channels, [mean](auto v) { return (v - mean) * (v - mean); }) / channels;
    const double inverse = 1.0 / std::sqrt(std::max(0.0, squares - rest * rest) + eps);
    const auto factor = static_cast<float>(inverse), left = static_cast<float>(rest * inverse);
    transform<Element, Element>(x, channels, out, [=]<class T>(T value, int64_t c) -> T {
      return ((value - mean) * factor + left) * read<T>(weight + c) + read<T>(bias + c);
    });
  }

  static constexpr NormKernels kernels() { return {moments, apply, layer}; }

 private:
  static void strip(const Stored* x, int64_t positions, int64_t stride, Moments* out) {
    Vector mean[kVectors], deviation[kVectors];
    measure(x, positions, stride, mean, deviation);
    for (int64_t c = 0; c < kStrip; ++c) out[c] = {mean[c / kLanes][c % kLanes], deviation[c / kLanes][c % kLanes]};
  }

  static void channel(const Stored* x, int64_t positions, int64_t stride, Moments* out) {
    float mean[1], deviation[1];
    measure(x, positions, stride, mean, deviation);
    *out = {mean[0], deviation[0]};
  }

  // The moments of several vectors of channels at a time, or of a float.
  template <class Value, int64_t kCount>
  static void measure(const Stored* x, int64_t positions, int64_t stride, Value (&mean)[kCount],
                      Value (&deviation)[kCount]) {
    const auto at = [](const Stored* from, int64_t v) { return load<Element, Value>(from + v * kLanes); };
    Value origin[kCount], sums[kCount], squares[kCount];
#pragma GCC unroll 4
    for (int64_t v = 0; v < kCount; ++v) {
      origin[v] = at(x, v);
      sums[v] = squares[v] = Value{};
    }
    for (int64_t p = 1; p < positions; ++p) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kCount; ++v) sums[v] += at(x + p * stride, v) - origin[v];
    }
#pragma GCC unroll 4
    for (int64_t v = 0; v < kCount; ++v) sums[v] = origin[v] + sums[v] / static_cast<float>(positions);
    for (int64_t p = 0; p < positions; ++p) {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kCount; ++v) {
        const Value d = at(x + p * stride, v) - sums[v];
        squares[v] += d * d;
      }
    }
    std::copy_n(sums, kCount, mean);
    std::copy_n(squares, kCount, deviation);
  }

  // The sum of f(x), in lanes that are added up in float64 at the end.
  template <class F>
  static double total(const Stored* x, int64_t count, F f) {
    float lanes[kLayerLanes];
    const int64_t whole = count / kLayerLanes * kLayerLanes;
    for (int64_t first = 0; first < kLayerLanes; first += kStrip) {
      Vector sums[kVectors] = {};
      for (int64_t i = first; i < whole; i += kLayerLanes) {
#pragma GCC unroll 4
        for (int64_t v = 0; v < kVectors; ++v) sums[v] += f(load<Element>(x + i + v * kLanes));
      }
      std::memcpy(lanes + first, sums, sizeof(sums));
    }
    for (int64_t lane = 0; whole + lane < count; ++lane) lanes[lane] += f(Element::widen(x[whole + lane]));
    return sum(lanes);
  }

  // In float64, one half added to the other until there is one.
  template <class Number, size_t kCount>
  static double sum(const Number (&values)[kCount]) {
    if constexpr (kCount == 1) {
      return values[0];
    } else {
      double halves[kCount / 2];
      for (size_t i = 0; i < kCount / 2; ++i) halves[i] = static_cast<double>(values[i]) + values[i + kCount / 2];
      return sum(halves);
    }
  }
};

inline const NormKernels& norm_kernels(Dtype dtype) {
  static constexpr NormKernels kFloat32 = NormLoops<Float32>::kernels(), kBFloat16 = NormLoops<BFloat16>::kernels();
  return dtype == Dtype::kFloat32 ? kFloat32 : kBFloat16;
}

}  // namespace
}  // namespace bridle
