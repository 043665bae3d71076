// The register tile over a vector type V: kRows left operands times kVectors * V::kLanes outputs. Left elements are
// broadcast straight from memory, so rows may lie anywhere; the panel is read once and in order.
#pragma once

#include <cstdint>

#include "ops/gemm/variant.h"

namespace bridle {
namespace {

// V::load_left(row, k) broadcasts the left elements of step k, V::load_panel(panel, k, j) reads vector j of the panel,
// and V::kDepth is how many elements of K a step takes.
template <class V, int kRows, int kVectors>
void tile(const TileArguments& a) {
  constexpr int64_t kWidth = kVectors * V::kLanes;
  typename V::Sum sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V::zero();
  }
  const typename V::Stored* rows[kRows];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) rows[i] = static_cast<const typename V::Stored*>(a.rows[i]) + a.first;
  const auto* panel = static_cast<const typename V::Stored*>(a.panel);
  for (int64_t k = 0; k < a.count; k += V::kDepth) {
    typename V::Panel right[kVectors];
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) right[j] = V::load_panel(panel + k * kWidth + j * V::kLanes * V::kDepth);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const auto left = V::load_left(rows[i] + k);
#pragma GCC unroll 16
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::multiply_add(left, right[j], sums[i][j]);
    }
  }
  // A sum of sums of pieces of K is closer to the exact one than a single long sum.
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) {
      float* const place = a.sums + i * a.stride + j * V::kLanes;
      V::store_sum(place, a.fresh ? sums[i][j] : V::add(V::load_sum(place), sums[i][j]));
    }
  }
}

}  // namespace
}  // namespace bridle
