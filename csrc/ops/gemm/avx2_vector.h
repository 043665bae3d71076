// The AVX2 vectors of the tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bridle {
namespace {

// Eight floats in a ymm register. 6 rows of 2 vectors are 12 sums, 2 of the panel and 1 of the left: 15 of 16.
struct Avx2 {
  using Stored = float;
  using Sum = __m256;
  using Panel = __m256;
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kDepth = 1;
  static __m256 zero() { return _mm256_setzero_ps(); }
  static __m256 load_sum(const float* p) { return _mm256_loadu_ps(p); }
  static void store_sum(float* p, __m256 v) { _mm256_storeu_ps(p, v); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 load_panel(const float* p) { return _mm256_loadu_ps(p); }
  static __m256 load_left(const float* p) { return _mm256_broadcast_ss(p); }
  static __m256 multiply_add(__m256 left, __m256 right, __m256 sum) { return _mm256_fmadd_ps(left, right, sum); }
};

}  // namespace
}  // namespace bridle
