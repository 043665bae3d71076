// The AVX-512 vectors of float32 tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ops/gemm/avx512_sums.h"

namespace bridle {
namespace {

// Sixteen floats in a zmm register.
struct Avx512 : Avx512Sums {
  using Stored = float;
  using Panel = __m512;
  static constexpr int64_t kDepth = 1;
  static __m512 load_panel(const float* p) { return _mm512_loadu_ps(p); }
  static __m512 load_left(const float* p) { return _mm512_set1_ps(*p); }
  static __m512 multiply_add(__m512 left, __m512 right, __m512 sum) { return _mm512_fmadd_ps(left, right, sum); }
};

}  // namespace
}  // namespace bridle
