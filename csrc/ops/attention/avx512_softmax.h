// The softmax of a block in AVX-512: two passes over the scores, which lie in L1.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/attention/attention_kernels.h"

namespace bridle {
namespace {

// e^x for x <= 0 to about a unit in the last place of 1: 2^n * P(r) with x / ln(2) = n + r, |r| <= 1/2, P the
// polynomial of degree 5 whose largest relative error is least, 8e-8. What x / ln(2) loses by rounding grows with |x|,
// but e^x shrinks faster. From -104 on it is 0, -inf included; NaN stays NaN.
inline __m512 avx512_exponential(__m512 x) {
  const __m512 t = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-104.0f), x), _mm512_set1_ps(1.44269504f));
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(t, n);
  __m512 p = _mm512_set1_ps(1.32765e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.67554e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550713e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.2402212f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69314694f));
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

// visit(i, lanes) for every sixteen places.
template <class Visit>
void each_sixteen(int64_t count, const Visit& visit) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) visit(i, static_cast<__mmask16>(0xffff));
  if (i < count) visit(i, first_lanes(count - i));
}

// The scores times the scale plus the bias, written back; the largest lanes.
inline __m512 scale_and_bias(const SoftmaxArguments& a, __m512 largest) {
  const __m512 scale = _mm512_set1_ps(a.scale);
  each_sixteen(a.count, [&](int64_t i, __mmask16 lanes) {
    __m512 score = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, a.scores + i), scale);
    if (a.bias != nullptr) score = _mm512_add_ps(score, load_bias(a, i, lanes));
    _mm512_mask_storeu_ps(a.scores + i, lanes, score);
    // The second operand wins where the first is NaN, so NaN does not become the maximum.
    largest = _mm512_mask_max_ps(largest, lanes, score, largest);
  });
  return largest;
}

// The largest lanes of the scores as they are.
inline __m512 largest_scores(const SoftmaxArguments& a, __m512 largest) {
  each_sixteen(a.count, [&](int64_t i, __mmask16 lanes) {
    largest = _mm512_mask_max_ps(largest, lanes, _mm512_maskz_loadu_ps(lanes, a.scores + i), largest);
  });
  return largest;
}

// The sum of lanes in double precision.
inline double sum_of(__m512 lanes) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(lanes));
  const __m512d high = _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(lanes), 1)));
  return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

// Writes the weights of scores that are still to be multiplied with `scale`; their sum. store(weights, i, lanes,
// values) keeps sixteen weights in the products' dtype.
template <class Store>
double weigh_scores(const SoftmaxArguments& a, float scale, float maximum, const Store& store) {
  const __m512 factor = _mm512_set1_ps(scale);
  const __m512 shift = _mm512_set1_ps(maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum);
  __m512 sum = _mm512_setzero_ps();
  each_sixteen(a.count, [&](int64_t i, __mmask16 lanes) {
    const __m512 score = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, a.scores + i), factor);
    const __m512 weight = avx512_exponential(_mm512_sub_ps(score, shift));
    sum = _mm512_mask_add_ps(sum, lanes, sum, weight);
    store(a.weights, i, lanes, weight);
  });
  return sum_of(sum);
}

// weigh(arguments, scale, maximum): the sum of the weights that it writes, and the one to report. Where nobody reads
// the scores again and there is no bias, they are not written back: the same numbers come of it, since a positive
// factor keeps their order.
template <class Weigh>
SoftmaxResult avx512_softmax(const SoftmaxArguments& a, const Weigh& weigh) {
  if (a.bias == nullptr && !a.keeps && a.scale > 0.0f) {
    const __m512 none = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    const float own = _mm512_reduce_max_ps(largest_scores(a, none)) * a.scale;
    const float maximum = std::max(a.maximum, own);
    return weigh(a, a.scale, maximum);
  }
  const float maximum = _mm512_reduce_max_ps(scale_and_bias(a, _mm512_set1_ps(a.maximum)));
  return weigh(a, 1.0f, maximum);
}

}  // namespace
}  // namespace bridle
