// The matrix unit in plain code: what AmxBlock is held to, and how its callers are tested on CPUs without one.
#pragma once

#include <cstdint>

#include "ops/element.h"
#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {
namespace {

template <int kColumns>
class EmulatedBlock {
 public:
  static void enter() {}
  static void leave() {}

  void zero() {
    for (auto& row : sums_) {
      for (float& sum : row) sum = 0.0f;
    }
  }

  void load(const float* sums, int64_t stride) {
    for (int64_t i = 0; i < 32; ++i) {
      for (int64_t j = 0; j < kWidth; ++j) sums_[i][j] = sums[i * stride + j];
    }
  }

  void store(float* sums, int64_t stride) const {
    for (int64_t i = 0; i < 32; ++i) {
      for (int64_t j = 0; j < kWidth; ++j) sums[i * stride + j] = sums_[i][j];
    }
  }

  // As TDPBF16PS: the first and the second elements of the pairs are summed apart, then added to what is there.
  void multiply_add(const LeftTile& upper, const LeftTile& lower, const uint16_t* right, int64_t width) {
    for (int64_t i = 0; i < 32; ++i) {
      const LeftTile& left = i < 16 ? upper : lower;
      const uint16_t* const row = left.data + i % 16 * left.stride;
      for (int64_t j = 0; j < kWidth; ++j) {
        float parts[2] = {};
        for (int64_t k = 0; k < kUnitDepth; ++k) {
          const uint16_t other = right[(k / 2 * width + j) * 2 + k % 2];
          parts[k % 2] += BFloat16::widen(row[k]) * BFloat16::widen(other);
        }
        sums_[i][j] += parts[0] + parts[1];
      }
    }
  }

 private:
  static constexpr int64_t kWidth = kColumns * 16;
  float sums_[32][kWidth];
};

}  // namespace
}  // namespace bridle
