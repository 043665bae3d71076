// The AVX-512 vectors of bfloat16 tiles.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "ops/gemm/avx512_sums.h"

namespace bridle {
namespace {

// Sixteen pairs of bfloat16 in a zmm register: VDPBF16PS adds both products of a pair to a float32 sum.
struct Avx512Bf16 : Avx512Sums {
  using Stored = uint16_t;
  using Panel = __m512bh;
  static constexpr int64_t kDepth = 2;
  static __m512bh load_panel(const uint16_t* p) {
    __m512i bits = _mm512_loadu_si512(p);
    return reinterpret_cast<__m512bh&>(bits);
  }
  static __m512bh load_left(const uint16_t* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof(pair));
    __m512i bits = _mm512_set1_epi32(pair);
    return reinterpret_cast<__m512bh&>(bits);
  }
  static __m512 multiply_add(__m512bh left, __m512bh right, __m512 sum) { return _mm512_dpbf16_ps(sum, left, right); }
};

}  // namespace
}  // namespace bridle
