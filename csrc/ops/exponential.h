// e^x and what is made of it, as plain code that compilers vectorise. Internal linkage: every variant has its own.
#pragma once

#include <bit>
#include <cstdint>

namespace bridle {
namespace {

// e^x to about 2 units in the last place of float32, for x in [-87, 88], clamped outside: 2^n * P(r) with
// |r| <= ln(2) / 2 and P the Taylor polynomial of degree 7. NaN stays NaN.
inline float exponential(float x) {
  const float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  // Adding and taking away 1.5 * 2^23 rounds to an integer.
  const float n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(n == n ? n : 0.0f) + 127;
  return p * std::bit_cast<float>(exponent << 23);
}

// Below -88 the true value is less than 1e-36.
inline float silu(float x) {
  const float value = x / (1.0f + exponential(-x));
  return x < -88.0f ? 0.0f : value;
}

}  // namespace
}  // namespace bridle
