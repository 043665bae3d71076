// The float32 sums of the AVX-512 tiles, sixteen in a zmm register. 6 rows of 4 vectors are 24 sums, with 4 of the
// panel 28 of 32 registers, and the 6 row pointers stay in general registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bridle {
namespace {

struct Avx512Sums {
  using Sum = __m512;
  static constexpr int64_t kLanes = 16;
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 load_sum(const float* p) { return _mm512_loadu_ps(p); }
  static void store_sum(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
};

}  // namespace
}  // namespace bridle
