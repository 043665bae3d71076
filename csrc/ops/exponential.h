// e^x and what is made of it, as plain code that compilers vectorise. Internal linkage: every variant has its own.
#pragma once

#include <bit>
#include <cstdint>

namespace bridle {
namespace {

// c + d x + ... for coefficients from the lowest power on.
template <class T>
constexpr T polynomial(T, float c) {
  return T{} + c;
}

template <class T, class... Higher>
constexpr T polynomial(T x, float c, Higher... higher) {
  return polynomial(x, higher...) * x + c;
}

// 2^n for sum = 1.5 * 2^23 + n, which has n in its lowest bits.
template <class T>
T power_of_two(T sum, T) {
  using Bits [[gnu::vector_size(sizeof(T))]] = uint32_t;
  return std::bit_cast<T>((std::bit_cast<Bits>(sum) << 23) + (127u << 23));
}

// Compilers make vectors of this.
inline float power_of_two(float, float n) {
  return std::bit_cast<float>((static_cast<int32_t>(n == n ? n : 0.0f) + 127) << 23);
}

// e^x to about 2 units in the last place of float32, for x in [-87, 88], clamped outside: 2^n * P(r) with
// |r| <= ln(2) / 2 and P of degree 6 within 3e-9, 1 at 0. NaN stays NaN.
//
// T: float or a vector of floats.
template <class T>
T exponential(T x) {
  const T clamped = x < -87.0f ? T{} - 87.0f : (x > 88.0f ? T{} + 88.0f : x);
  // Adding and taking away 1.5 * 2^23 rounds to an integer, which the sum has in its lowest bits.
  const T sum = clamped * 1.44269504f + 12582912.0f;
  const T n = sum - 12582912.0f;
  const T r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  // Not one operation after the other, as Horner's rule has it: what takes the time is that each waits for the last.
  const T s = r * r;
  const T high = polynomial(r, 0.041668389f, 0.00836871658f) + s * 0.00138145988f;
  const T p = 1.0f + (r + s * (polynomial(r, 0.49999994f, 0.166665211f) + s * high));
  return p * power_of_two(sum, n);
}

// Below -88 the true value is less than 1e-36.
template <class T>
T silu(T x) {
  const T value = x / (1.0f + exponential(-x));
  return x < -88.0f ? T{} : value;
}

// x * sigmoid(1.702 x).
inline float quick_gelu(float x) {
  const float value = x / (1.0f + exponential(-1.702f * x));
  return x < -51.0f ? 0.0f : value;
}

// 1 - erf(x) for x >= 0, about 2e-7 from the exact value: a polynomial in x^2 below 1, e to the power of one from 1 to
// 4, both fitted at Chebyshev nodes; 0 from 4 on, where it is less than 2e-8.
inline float complementary_error(float x) {
  const float s = x * x, t = x < 4.0f ? x : 4.0f;
  const float small = polynomial(s, 1.12837917f, -3.76126269e-1f, 1.12835975e-1f, -2.68543288e-2f, 5.18931194e-3f,
                                 -8.01885499e-4f, 7.88249711e-5f);
  const float power = polynomial(t, 3.03212992e-4f, -1.13016668f, -6.31937094e-1f, -1.09978245e-1f, 2.63647174e-2f,
                                 -4.74022236e-3f, 5.92769542e-4f, -4.55906229e-5f, 1.61406162e-6f);
  const float large = x < 4.0f ? exponential(power) : 0.0f;
  return x < 1.0f ? 1.0f - small * x : large;
}

// x * (1 + erf(x / sqrt(2))) / 2.
inline float gelu(float x) {
  const float tail = 0.5f * complementary_error((x < 0.0f ? -x : x) * 0.707106781f);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// `polynomial` with one rounding for each power where the CPU has that; bits then depend on it.
inline float fused_polynomial(float, float c) { return c; }

template <class... Higher>
float fused_polynomial(float x, float c, Higher... higher) {
#ifdef __FP_FAST_FMAF
  return __builtin_fmaf(fused_polynomial(x, higher...), x, c);
#else
  return fused_polynomial(x, higher...) * x + c;
#endif
}

// `gelu` for results in bfloat16: the tail, (1 - erf(|x| / sqrt(2))) / 2, is within 1.1e-4 of itself, where half a unit
// of the last place is 2e-3. Its logarithm to base 2 is a polynomial within 5e-5 up to 5.65, where it is 8e-9.
inline float coarse_gelu(float x) {
  const float size = x < 0.0f ? -x : x, s = size < 5.65f ? size : 5.65f;
  const float power = fused_polynomial(s, -1.00004349f, -1.15047519f, -4.60586924e-1f, -5.17496422e-2f, 7.40354604e-3f,
                                       -6.46109586e-4f, 2.5182704e-5f);
  const float sum = power + 12582912.0f, n = sum - 12582912.0f;
  const float p = fused_polynomial(power - n, 0.999928073f, 0.693260985f, 0.242611125f, 5.51716703e-2f);
  const float tail = size < 5.65f ? p * power_of_two(sum, n) : 0.0f;
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// An odd polynomial below 0.625, fitted at Chebyshev nodes, where the other formula would cancel; about 2 units in the
// last place.
inline float hyperbolic_tangent(float x) {
  const float s = x * x, size = x < 0.0f ? -x : x;
  const float p = polynomial(s, -3.33332837e-1f, 1.33314639e-1f, -5.37413992e-2f, 2.06441283e-2f, -5.71021764e-3f);
  const float large = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
  return size < 0.625f ? x + x * (s * p) : (x < 0.0f ? -large : large);
}

}  // namespace
}  // namespace bridle
