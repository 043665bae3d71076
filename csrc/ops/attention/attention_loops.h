// The loops of attention over one query, plain code that every variant's compiler flags vectorise: sums and maxima go
// over a fixed number of lanes, so that all variants have the same order.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "ops/attention/attention_kernels.h"
#include "ops/element.h"
#include "ops/exponential.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

constexpr int64_t kSoftmaxLanes = 16;

inline float largest(const float* values, int64_t count, float start) {
  float lanes[kSoftmaxLanes];
  for (float& lane : lanes) lane = start;
  int64_t i = 0;
  for (; i + kSoftmaxLanes <= count; i += kSoftmaxLanes) {
    for (int64_t j = 0; j < kSoftmaxLanes; ++j) lanes[j] = lanes[j] < values[i + j] ? values[i + j] : lanes[j];
  }
  for (int64_t j = 0; i + j < count; ++j) lanes[j] = lanes[j] < values[i + j] ? values[i + j] : lanes[j];
  float found = start;
  for (const float lane : lanes) found = found < lane ? lane : found;
  return found;
}

// e^x, and exactly 0 where it is below the smallest normal number.
inline float weight_of(float x) {
  const float value = exponential(x);
  return x < -87.0f ? 0.0f : value;
}

template <class Element>
SoftmaxResult softmax(const SoftmaxArguments& a) {
  float* const scores = a.scores;
  for (int64_t i = 0; i < a.count; ++i) scores[i] *= a.scale;
  if (a.bias != nullptr && a.bias_stride == 0) {
    for (int64_t i = 0; i < a.count; ++i) scores[i] += a.bias[0];
  } else if (a.bias != nullptr && a.bias_stride == 1) {
    for (int64_t i = 0; i < a.count; ++i) scores[i] += a.bias[i];
  } else if (a.bias != nullptr) {
    for (int64_t i = 0; i < a.count; ++i) scores[i] += a.bias[i * a.bias_stride];
  }
  const float maximum = largest(scores, a.count, a.maximum);
  const float shift = maximum == -std::numeric_limits<float>::infinity() ? 0.0f : maximum;
  auto* const weights = static_cast<typename Element::Stored*>(a.weights);
  float lanes[kSoftmaxLanes] = {};
  int64_t i = 0;
  for (; i + kSoftmaxLanes <= a.count; i += kSoftmaxLanes) {
    for (int64_t j = 0; j < kSoftmaxLanes; ++j) {
      const float weight = weight_of(scores[i + j] - shift);
      lanes[j] += weight;
      weights[i + j] = Element::narrow(weight);
    }
  }
  for (int64_t j = 0; i + j < a.count; ++j) {
    const float weight = weight_of(scores[i + j] - shift);
    lanes[j] += weight;
    weights[i + j] = Element::narrow(weight);
  }
  double sum = 0.0;
  for (const float lane : lanes) sum += lane;
  return exact_softmax(maximum, sum);
}

inline void rescale(float* row, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) row[i] *= factor;
}

inline void add_scaled(float* total, const float* row, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) total[i] += row[i] * factor;
}

template <class Element>
void write(void* out, const float* row, float factor, bool accumulates, int64_t count) {
  auto* const stored = static_cast<typename Element::Stored*>(out);
  if (factor == 0.0f) {
    // 0 * infinity is not 0.
    for (int64_t i = 0; !accumulates && i < count; ++i) stored[i] = 0;
  } else if (accumulates) {
    for (int64_t i = 0; i < count; ++i) stored[i] = Element::narrow(Element::widen(stored[i]) + row[i] * factor);
  } else {
    for (int64_t i = 0; i < count; ++i) stored[i] = Element::narrow(row[i] * factor);
  }
}

template <class Element>
void narrow(void* weights, const float* values, int64_t count) {
  auto* const out = static_cast<typename Element::Stored*>(weights);
  for (int64_t i = 0; i < count; ++i) out[i] = Element::narrow(values[i]);
}

// The tiles over vectors V, kRows queries high and up to as many vectors wide as there are panels.
template <class V, class Element, int kRows, int... kPanels>
constexpr AttentionVariant attention_variant(SoftmaxResult (*softmax_of_element)(const SoftmaxArguments&),
                                             std::integer_sequence<int, kPanels...>) {
  return {std::is_same_v<Element, Float32> ? Dtype::kFloat32 : Dtype::kBFloat16,
          kRows,
          V::kLanes,
          sizeof...(kPanels),
          V::kDepth,
          {tile<V, kRows, kPanels + 1>...},
          softmax_of_element,
          rescale,
          add_scaled,
          write<Float32>,
          write<BFloat16>,
          narrow<Element>,
          V::kDepth};
}

}  // namespace
}  // namespace bridle
