// The softmax of a block in AVX-512, with weights in bfloat16.
#pragma once

#include <immintrin.h>

#include "ops/attention/avx512_softmax.h"

namespace bridle {
namespace {

// 2^t within 3e-6 of it, 1 at 0: 2^n * P(r) with t = n + r, 0 <= r < 1, where n is rounded down by the very instruction
// that multiplies with its power; 0 for -inf, and NaN stays NaN. Weights in bfloat16 are rounded to 2e-3.
inline __m512 coarse_power_of_two(__m512 t) {
  const __m512 r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(1.34251546e-2f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.22453748e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.241278559f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693045139f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, t);
}

inline void store_bfloat16(void* weights, int64_t i, __mmask16 lanes, __m512 values) {
  const __m256bh narrowed = _mm512_cvtneps_pbh(values);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(weights) + i, lanes, reinterpret_cast<const __m256i&>(narrowed));
}

// `weigh_scores`, less exactly, two vectors at a time.
inline double weigh_coarsely(const SoftmaxArguments& a, float scale, float maximum) {
  const __m512 factor = _mm512_set1_ps(scale), to_base_2 = _mm512_set1_ps(1.44269504f);
  const __m512 shift = _mm512_mul_ps(_mm512_set1_ps(maximum), to_base_2);
  // Scores that were scaled before give the same bits.
  const auto weight = [&](__m512 score) {
    return coarse_power_of_two(_mm512_fmsub_ps(_mm512_mul_ps(score, factor), to_base_2, shift));
  };
  __m512 sum = _mm512_setzero_ps(), other = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 32 <= a.count; i += 32) {
    const __m512 low = weight(_mm512_loadu_ps(a.scores + i)), high = weight(_mm512_loadu_ps(a.scores + i + 16));
    sum = _mm512_add_ps(sum, low);
    other = _mm512_add_ps(other, high);
    const __m512bh narrowed = _mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(static_cast<uint16_t*>(a.weights) + i, reinterpret_cast<const __m512i&>(narrowed));
  }
  for (; i < a.count; i += 16) {
    const __mmask16 lanes = first_lanes(a.count - i);
    const __m512 last = weight(_mm512_maskz_loadu_ps(lanes, a.scores + i));
    sum = _mm512_mask_add_ps(sum, lanes, sum, last);
    store_bfloat16(a.weights, i, lanes, last);
  }
  return sum_of(_mm512_add_ps(sum, other));
}

// Weights are coarse whether or not somebody reads the map, so that reporting changes no output; what is reported comes
// from a sum of its own. The exponent of a maximum is rounded, by a factor that blocks with other maxima do not share:
// up to 64 it is 4e-6. Far beyond, the exponent overflows.
inline SoftmaxResult weigh_bfloat16(const SoftmaxArguments& a, float scale, float maximum) {
  constexpr float kLargest = 64.0f;
  if (!(maximum >= -kLargest && maximum <= kLargest)) {
    return exact_softmax(maximum, weigh_scores(a, scale, maximum, store_bfloat16));
  }
  const double sum = weigh_coarsely(a, scale, maximum);
  return {maximum, sum, a.reports ? weigh_scores(a, scale, maximum, [](auto...) {}) : sum};
}

inline SoftmaxResult softmax_bfloat16(const SoftmaxArguments& arguments) {
  return avx512_softmax(arguments, weigh_bfloat16);
}

}  // namespace
}  // namespace bridle
