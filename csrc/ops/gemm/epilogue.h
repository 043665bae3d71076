// What happens to finished sums, in plain loops that every variant's compiler flags vectorise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ops/activate.h"
#include "ops/element.h"
#include "ops/exponential.h"
#include "ops/gemm/variant.h"

namespace bridle {
namespace {

// What is rounded to bfloat16 afterwards needs no exact gate.
template <class Element>
float gate(float x) {
  return std::is_same_v<Element, BFloat16> ? coarse_gelu(x) : gelu(x);
}

template <class Element>
void finish(const EpilogueArguments& a) {
  using Stored = typename Element::Stored;
  const auto* residual = static_cast<const Stored*>(a.residual);
  auto* out = static_cast<Stored*>(a.out);
  float values[128];
  std::copy(a.sums, a.sums + a.count, values);
  if (a.bias != nullptr) {
    for (int64_t i = 0; i < a.count; ++i) values[i] += a.bias[i];
  }
  if (a.gate_sums != nullptr) {
    for (int64_t i = 0; i < a.count; ++i) {
      values[i] *= gate<Element>(a.gate_sums[i] + (a.gate_bias == nullptr ? 0.0f : a.gate_bias[i]));
    }
  }
  if (a.shift != nullptr) {
    for (int64_t i = 0; i < a.count; ++i) values[i] += a.shift[i];
  }
  if (residual != nullptr) {
    for (int64_t i = 0; i < a.count; ++i) values[i] += Element::widen(residual[i]);
  }
  activate(a.activation, values, a.count);
  for (int64_t i = 0; i < a.count; ++i) out[i] = Element::narrow(values[i]);
}

}  // namespace
}  // namespace bridle
