// A block of sums in the matrix unit: 32 rows by 16 or 32 outputs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {
namespace {

// What LDTILECFG reads. Eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);
constexpr TileConfiguration kTileConfiguration;

// Tiles 0 to 3 are the sums, [rows of 16][outputs of 16]; 4 and 5 the left operands, 16 rows of 32 elements; 6 and 7
// the right ones, 16 pairs of elements by 16 outputs. Four loads serve four products of 16 cycles each, and the
// registers are just enough.
template <int kColumns>
class AmxBlock {
 public:
  static void enter() { _tile_loadconfig(&kTileConfiguration); }
  static void leave() { _tile_release(); }

  void zero() {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (kColumns == 2) {
      _tile_zero(1);
      _tile_zero(3);
    }
  }

  void load(const float* sums, int64_t stride) {
    ordered();
    const int64_t bytes = stride * 4;
    _tile_loadd(0, sums, bytes);
    _tile_loadd(2, sums + 16 * stride, bytes);
    if constexpr (kColumns == 2) {
      _tile_loadd(1, sums + 16, bytes);
      _tile_loadd(3, sums + 16 * stride + 16, bytes);
    }
  }

  void store(float* sums, int64_t stride) const {
    const int64_t bytes = stride * 4;
    _tile_stored(0, sums, bytes);
    _tile_stored(2, sums + 16 * stride, bytes);
    if constexpr (kColumns == 2) {
      _tile_stored(1, sums + 16, bytes);
      _tile_stored(3, sums + 16 * stride + 16, bytes);
    }
  }

  void multiply_add(const LeftTile& upper, const LeftTile& lower, const uint16_t* right, int64_t width) {
    ordered();
    _tile_loadd(6, right, width * 4);
    _tile_loadd(4, upper.data, upper.stride * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, lower.data, lower.stride * 2);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kColumns == 2) {
      _tile_loadd(7, right + 32, width * 4);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

 private:
  // GCC's tile loads do not say that they read memory: without this what was just written might not be there yet.
  static void ordered() { __asm__ volatile("" ::: "memory"); }
};

}  // namespace
}  // namespace bridle
