// Elements in memory as float32.
#pragma once

#include <bit>
#include <cstdint>

namespace bridle {
// Every variant has its own: their flags differ.
namespace {

struct Float32 {
  using Stored = float;
  static float widen(float value) { return value; }
  static float narrow(float value) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static float widen(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

  // Nearest, ties to even; NaN stays NaN.
  static uint16_t narrow(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet = (bits >> 16) | 0x40;
    return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
  }
};

}  // namespace
}  // namespace bridle
