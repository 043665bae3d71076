// The loops of RowKernels over a vector type V: V::kLanes floats, with load, store, broadcast, multiply, add, subtract
// and the widening loads. Full vectors, then the tail through a padded buffer, so that every element takes the same
// path.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/guide_step_blend/row_kernels.h"

namespace bridle {

template <class V>
struct RowLoops {
  static constexpr int64_t kLanes = V::kLanes;

  static void accumulate(float* total, const float* term, float coefficient, int64_t n) {
    const auto c = V::broadcast(coefficient);
    for_each(total, n, [&](float* t, int64_t i, int64_t count) {
      V::store(t, V::add(V::load(t), V::multiply(load(term + i, count), c)));
    });
  }

  static void accumulate_weighted(float* total, const float* term, const float* weight, float coefficient, int64_t n) {
    const auto c = V::broadcast(coefficient);
    for_each(total, n, [&](float* t, int64_t i, int64_t count) {
      const auto value = V::multiply(V::multiply(load(term + i, count), c), load(weight + i, count));
      V::store(t, V::add(V::load(t), value));
    });
  }

  static void blend(float* x, const float* mask, const float* level, int64_t n) {
    const auto one = V::broadcast(1.0f);
    for_each(x, n, [&](float* t, int64_t i, int64_t count) {
      const auto inside = load(mask + i, count);
      const auto outside = V::multiply(V::subtract(one, inside), load(level + i, count));
      V::store(t, V::add(V::multiply(inside, V::load(t)), outside));
    });
  }

  static void widen_half(float* out, const uint16_t* in, int64_t n) { widen(out, in, n, V::from_half); }
  static void widen_bfloat16(float* out, const uint16_t* in, int64_t n) { widen(out, in, n, V::from_bfloat16); }

  static constexpr RowKernels kernels() { return {accumulate, accumulate_weighted, blend, widen_half, widen_bfloat16}; }

 private:
  // Calls body(pointer to kLanes readable and writable floats, index, valid lanes) for the whole row.
  template <class Body>
  static void for_each(float* row, int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(row + i, i, kLanes);
    if (kLanes == 1 || i == n) return;
    float tail[kLanes] = {};
    std::copy(row + i, row + n, tail);
    body(tail, i, n - i);
    std::copy(tail, tail + (n - i), row + i);
  }

  static auto load(const float* from, int64_t count) {
    if (kLanes == 1 || count == kLanes) return V::load(from);
    float padded[kLanes] = {};
    std::copy(from, from + count, padded);
    return V::load(padded);
  }

  template <class Convert>
  static void widen(float* out, const uint16_t* in, int64_t n, Convert convert) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) V::store(out + i, convert(in + i));
    if (kLanes == 1 || i == n) return;
    uint16_t padded[kLanes] = {};
    float wide[kLanes];
    std::copy(in + i, in + n, padded);
    V::store(wide, convert(padded));
    std::copy(wide, wide + (n - i), out + i);
  }
};

}  // namespace bridle
