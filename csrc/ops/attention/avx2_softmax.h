// The softmax of a block in AVX2: two passes over the scores, which lie in L1.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "ops/attention/attention_kernels.h"

namespace bridle {
namespace {

// e^x for x <= 0 as `avx512_exponential` does it, but 0 below -87: without scalef the power of two has to be normal.
// NaN stays NaN.
inline __m256 avx2_exponential(__m256 x) {
  const __m256 t = _mm256_mul_ps(_mm256_max_ps(_mm256_set1_ps(-87.0f), x), _mm256_set1_ps(1.44269504f));
  const __m256 n = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 r = _mm256_sub_ps(t, n);
  __m256 p = _mm256_set1_ps(1.32765e-3f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(9.67554e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.550713e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.2402212f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.69314694f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  const __m256 power = _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ), _mm256_mul_ps(p, power));
}

// Eight lanes, or the first few of them: masked stores are slow on some CPUs, so all eight are read and written whole.
struct Whole {
  __m256 load(const float* from) const { return _mm256_loadu_ps(from); }
  void store(float* to, __m256 values) const { _mm256_storeu_ps(to, values); }
  // `values` in these lanes, `others` elsewhere.
  __m256 choose(__m256 values, __m256) const { return values; }
};

struct First {
  explicit First(int64_t count)
      : lanes(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count)),
                                 _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
  __m256 load(const float* from) const { return _mm256_maskload_ps(from, lanes); }
  void store(float* to, __m256 values) const { _mm256_maskstore_ps(to, lanes, values); }
  __m256 choose(__m256 values, __m256 others) const {
    return _mm256_blendv_ps(others, values, _mm256_castsi256_ps(lanes));
  }
  __m256i lanes;
};

template <class Lanes>
__m256 load_bias(const SoftmaxArguments& a, int64_t i, Lanes lanes) {
  if (a.bias_stride == 0) return _mm256_set1_ps(a.bias[0]);
  if (a.bias_stride == 1) return lanes.load(a.bias + i);
  float values[8] = {};
  for (int64_t j = 0; j < std::min<int64_t>(8, a.count - i); ++j) values[j] = a.bias[(i + j) * a.bias_stride];
  return _mm256_loadu_ps(values);
}

// visit(i, lanes) for every eight places.
template <class Visit>
void each_eight(int64_t count, const Visit& visit) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) visit(i, Whole());
  if (i < count) visit(i, First(count - i));
}

inline float largest_lane(__m256 values) {
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, values);
  return *std::max_element(lanes, lanes + 8);
}

// The scores times the scale plus the bias, written back; the largest lanes.
inline __m256 scale_and_bias(const SoftmaxArguments& a, __m256 largest) {
  const __m256 scale = _mm256_set1_ps(a.scale);
  each_eight(a.count, [&](int64_t i, auto lanes) {
    __m256 score = _mm256_mul_ps(lanes.load(a.scores + i), scale);
    if (a.bias != nullptr) score = _mm256_add_ps(score, load_bias(a, i, lanes));
    lanes.store(a.scores + i, score);
    // The second operand wins where the first is NaN, so NaN does not become the maximum.
    largest = lanes.choose(_mm256_max_ps(score, largest), largest);
  });
  return largest;
}

// The largest lanes of the scores as they are.
inline __m256 largest_scores(const SoftmaxArguments& a, __m256 largest) {
  each_eight(a.count, [&](int64_t i, auto lanes) {
    largest = lanes.choose(_mm256_max_ps(lanes.load(a.scores + i), largest), largest);
  });
  return largest;
}

// Writes the weights of scores that are still to be multiplied with `scale`; their sum.
inline double weigh_scores(const SoftmaxArguments& a, float scale, float maximum) {
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256 shift = _mm256_set1_ps(maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum);
  auto* const weights = static_cast<float*>(a.weights);
  __m256 sum = _mm256_setzero_ps();
  each_eight(a.count, [&](int64_t i, auto lanes) {
    const __m256 score = _mm256_mul_ps(lanes.load(a.scores + i), factor);
    const __m256 weight = avx2_exponential(_mm256_sub_ps(score, shift));
    sum = _mm256_add_ps(sum, lanes.choose(weight, _mm256_setzero_ps()));
    lanes.store(weights + i, weight);
  });
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, sum);
  double total = 0.0;
  for (const float lane : lanes) total += lane;
  return total;
}

// Where nobody reads the scores again and there is no bias, they are not written back: the same numbers come of it,
// since a positive factor keeps their order.
inline SoftmaxResult avx2_softmax(const SoftmaxArguments& a) {
  if (a.bias == nullptr && !a.keeps && a.scale > 0.0f) {
    const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
    const float maximum = std::max(a.maximum, largest_lane(largest_scores(a, none)) * a.scale);
    return exact_softmax(maximum, weigh_scores(a, a.scale, maximum));
  }
  const float maximum = largest_lane(scale_and_bias(a, _mm256_set1_ps(a.maximum)));
  return exact_softmax(maximum, weigh_scores(a, 1.0f, maximum));
}

}  // namespace
}  // namespace bridle
