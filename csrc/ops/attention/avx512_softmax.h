// The softmax of a block in AVX-512: two passes over the scores, which lie in L1.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/attention/attention_kernels.h"

namespace bridle {
namespace {

// e^x for x <= 0 to about a unit in the last place: 2^n * P(r), |r| <= ln(2) / 2, P the Taylor polynomial of degree 7,
// whose next term is below 6e-9; that of degree 6 is as much as a rounding. From -104 on it is 0, -inf included; NaN
// stays NaN.
inline __m512 avx512_exponential(__m512 x) {
  const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(bounded, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), bounded);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.0f / 5040.0f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}

inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1u);
}

inline __m512 load_bias(const SoftmaxArguments& a, int64_t i, __mmask16 lanes) {
  if (a.bias_stride == 0) return _mm512_set1_ps(a.bias[0]);
  if (a.bias_stride == 1) return _mm512_maskz_loadu_ps(lanes, a.bias + i);
  float values[16] = {};
  for (int64_t j = 0; j < std::min<int64_t>(16, a.count - i); ++j) values[j] = a.bias[(i + j) * a.bias_stride];
  return _mm512_loadu_ps(values);
}

// store(weights, i, lanes, values) keeps sixteen weights in the products' dtype.
template <class Store>
SoftmaxResult avx512_softmax(const SoftmaxArguments& a, const Store& store) {
  const __m512 scale = _mm512_set1_ps(a.scale);
  __m512 largest = _mm512_set1_ps(a.maximum);
  for (int64_t i = 0; i < a.count; i += 16) {
    const __mmask16 lanes = first_lanes(a.count - i);
    __m512 score = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, a.scores + i), scale);
    if (a.bias != nullptr) score = _mm512_add_ps(score, load_bias(a, i, lanes));
    _mm512_mask_storeu_ps(a.scores + i, lanes, score);
    // The second operand wins where the first is NaN, so NaN does not become the maximum.
    largest = _mm512_mask_max_ps(largest, lanes, score, largest);
  }
  const float maximum = _mm512_reduce_max_ps(largest);
  const __m512 shift = _mm512_set1_ps(maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < a.count; i += 16) {
    const __mmask16 lanes = first_lanes(a.count - i);
    const __m512 weight = avx512_exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, a.scores + i), shift));
    sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
    store(a.weights, i, lanes, weight);
  }
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(sum));
  const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(sum), 1)));
  return {maximum, _mm512_reduce_add_pd(_mm512_add_pd(low, high))};
}

}  // namespace
}  // namespace bridle
