// One element at a time, for the tiles.
#pragma once

#include <cstdint>

#include "ops/element.h"

namespace bridle {
namespace {

template <class Element>
struct Scalar {
  using Stored = typename Element::Stored;
  using Sum = float;
  using Panel = Stored;
  static constexpr int64_t kLanes = 1;
  static constexpr int64_t kDepth = 1;
  static float zero() { return 0.0f; }
  static float load_sum(const float* p) { return *p; }
  static void store_sum(float* p, float v) { *p = v; }
  static float add(float a, float b) { return a + b; }
  static Stored load_panel(const Stored* p) { return *p; }
  static float load_left(const Stored* p) { return Element::widen(*p); }
  static float multiply_add(float left, Stored right, float sum) { return left * Element::widen(right) + sum; }
};

}  // namespace
}  // namespace bridle
