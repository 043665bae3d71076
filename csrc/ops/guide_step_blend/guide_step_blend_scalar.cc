#include <bit>

#include "ops/guide_step_blend/row_loops.h"

namespace bridle {
namespace {

struct Scalar {
  static constexpr int64_t kLanes = 1;
  static float load(const float* p) { return *p; }
  static void store(float* p, float v) { *p = v; }
  static float broadcast(float v) { return v; }
  static float multiply(float a, float b) { return a * b; }
  static float add(float a, float b) { return a + b; }
  static float subtract(float a, float b) { return a - b; }

  static float from_bfloat16(const uint16_t* p) { return std::bit_cast<float>(static_cast<uint32_t>(*p) << 16); }

  // IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. A subnormal is fraction * 2^-24.
  static float from_half(const uint16_t* p) {
    const uint32_t sign = static_cast<uint32_t>(*p & 0x8000u) << 16;
    const uint32_t exponent = (*p >> 10) & 0x1fu;
    const uint32_t fraction = *p & 0x3ffu;
    if (exponent == 0) {
      const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
      return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
    }
    const uint32_t wide = exponent == 31 ? 0xffu : exponent + 112;
    const uint32_t quiet = exponent == 31 && fraction != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | (wide << 23) | (fraction << 13) | quiet);
  }
};

}  // namespace

const RowKernels& scalar_row_kernels() {
  static constexpr RowKernels kKernels = RowLoops<Scalar>::kernels();
  return kKernels;
}

}  // namespace bridle
