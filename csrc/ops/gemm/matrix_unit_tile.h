// The tile of variants with a matrix unit: 32 rows by a panel of bfloat16, two rows of outputs' tiles at a time. The
// unit wants rows at equal distances and 32 elements of K: rows that lie anywhere are copied, and what is left of K is
// filled up with zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/gemm/variant.h"

namespace bridle {
namespace {

// Elements of K in a product of the unit.
constexpr int64_t kUnitDepth = 32;

// 16 rows of the left operand, `stride` elements apart.
struct LeftTile {
  const uint16_t* data;
  int64_t stride;
};

// The left operand of a tile, 16 rows of it: `whole` elements of K as they lie or copied, and the rest with zeros.
class LeftRows {
 public:
  LeftRows(const void* const* rows, int64_t first, int64_t whole, int64_t rest) {
    const auto at = [&](int64_t i) { return static_cast<const uint16_t*>(rows[i]) + first; };
    // Rows may lie in different buffers.
    const auto distance = [&](int64_t i) {
      return static_cast<int64_t>(reinterpret_cast<intptr_t>(rows[i]) - reinterpret_cast<intptr_t>(rows[0])) / 2;
    };
    bool even = true;
    for (int64_t i = 2; i < 16; ++i) even = even && distance(i) == i * distance(1);
    whole_ = {at(0), distance(1)};
    if (!even) {
      for (int64_t i = 0; i < 16; ++i) std::memcpy(copies_ + i * kMostTileDepth, at(i), whole * 2);
      whole_ = {copies_, kMostTileDepth};
    }
    if (rest == 0) return;
    std::memset(rest_, 0, sizeof(rest_));
    for (int64_t i = 0; i < 16; ++i) std::memcpy(rest_ + i * kUnitDepth, at(i) + whole, rest * 2);
  }

  LeftTile whole(int64_t k) const { return {whole_.data + k, whole_.stride}; }
  LeftTile rest() const { return {rest_, kUnitDepth}; }

 private:
  LeftTile whole_;
  alignas(64) uint16_t copies_[16 * kMostTileDepth];
  alignas(64) uint16_t rest_[16 * kUnitDepth];
};

// What is left of K of a panel, filled up with zeros.
template <int64_t kWidth>
class RightRest {
 public:
  RightRest(const uint16_t* panel, int64_t rest) {
    if (rest == 0) return;
    std::memcpy(data_, panel, rest * kWidth * 2);
    std::memset(data_ + rest * kWidth, 0, (kUnitDepth - rest) * kWidth * 2);
  }
  const uint16_t* data() const { return data_; }

 private:
  alignas(64) uint16_t data_[kUnitDepth * kWidth];
};

template <template <int> class Block, int kVectors>
void matrix_unit_tile(const TileArguments& a) {
  constexpr int64_t kWidth = kVectors * 16;
  const int64_t whole = a.count / kUnitDepth * kUnitDepth, rest = a.count - whole;
  const LeftRows upper(a.rows, a.first, whole, rest), lower(a.rows + 16, a.first, whole, rest);
  const auto* const panel = static_cast<const uint16_t*>(a.panel);
  const RightRest<kWidth> right(panel + whole * kWidth, rest);
  const auto add_columns = [&]<int kColumns>(Block<kColumns> block, int64_t output) {
    float* const sums = a.sums + output;
    a.fresh ? block.zero() : block.load(sums, a.stride);
    for (int64_t k = 0; k < whole; k += kUnitDepth) {
      block.multiply_add(upper.whole(k), lower.whole(k), panel + k * kWidth + output * 2, kWidth);
    }
    if (rest > 0) block.multiply_add(upper.rest(), lower.rest(), right.data() + output * 2, kWidth);
    block.store(sums, a.stride);
  };
  int64_t output = 0;
  for (; output + 32 <= kWidth; output += 32) add_columns(Block<2>(), output);
  if (output < kWidth) add_columns(Block<1>(), output);
}

}  // namespace
}  // namespace bridle
