#include <immintrin.h>

#include "ops/guide_step_blend/row_loops.h"

namespace bridle {
namespace {

// Eight floats in a ymm register.
struct Avx2 {
  static constexpr int64_t kLanes = 8;
  static __m256 load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
  static __m256 broadcast(float v) { return _mm256_set1_ps(v); }
  static __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 subtract(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }

  // Eight 16-bit values in the low half; F16C widens them exactly.
  static __m256 from_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  // bfloat16 is the upper half of a float.
  static __m256 from_bfloat16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
};

}  // namespace

const RowKernels& avx2_row_kernels() {
  static constexpr RowKernels kKernels = RowLoops<Avx2>::kernels();
  return kKernels;
}

}  // namespace bridle
