// The softmax of a block in AVX-512, with weights in bfloat16.
#pragma once

#include <immintrin.h>

#include "ops/attention/avx512_softmax.h"

namespace bridle {
namespace {

inline void store_bfloat16(void* weights, int64_t i, __mmask16 lanes, __m512 values) {
  const __m256bh narrowed = _mm512_cvtneps_pbh(values);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(weights) + i, lanes, reinterpret_cast<const __m256i&>(narrowed));
}

inline SoftmaxResult softmax_bfloat16(const SoftmaxArguments& arguments) {
  return avx512_softmax(arguments, store_bfloat16);
}

}  // namespace
}  // namespace bridle
