#include <immintrin.h>

#include "ops/guide_step_blend/row_loops.h"

namespace bridle {
namespace {

// The unmasked forms of these conversions warn of an uninitialised value in GCC 12's own header (GCC bug 105593).
constexpr __mmask16 kAll = 0xffff;

// Sixteen floats in a zmm register.
struct Avx512 {
  static constexpr int64_t kLanes = 16;
  static __m512 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
  static __m512 broadcast(float v) { return _mm512_set1_ps(v); }
  static __m512 multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 subtract(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }

  // Sixteen 16-bit values in a ymm register, widened exactly.
  static __m512 from_half(const uint16_t* p) {
    return _mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  // bfloat16 is the upper half of a float.
  static __m512 from_bfloat16(const uint16_t* p) {
    const __m512i wide = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, wide, 16));
  }
};

}  // namespace

const RowKernels& avx512_row_kernels() {
  static constexpr RowKernels kKernels = RowLoops<Avx512>::kernels();
  return kKernels;
}

}  // namespace bridle
