// Floats in a register of the instruction set that a file is compiled for, with the operators of plain floats.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>

#include "ops/element.h"

namespace bridle {
// Every variant has its own: their flags differ.
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

using Vector [[gnu::vector_size(kLanes * sizeof(float))]] = float;
using Words [[gnu::vector_size(kLanes * sizeof(uint32_t))]] = uint32_t;
using Halves [[gnu::vector_size(kLanes * sizeof(uint16_t))]] = uint16_t;

// T: float or Vector, for code that is the same for both.
template <class T>
T read(const void* from) {
  T values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// kLanes bfloat16. GCC 12 takes two instructions more where it is not told which; its unmasked AVX-512 form warns of an
// uninitialised value in its own header (GCC bug 105593).
inline Words widen(Halves values) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, reinterpret_cast<__m256i>(values)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(values)));
#else
  return __builtin_convertvector(values, Words);
#endif
}

inline Halves narrow(Vector values) {
  const Words bits = std::bit_cast<Words>(values);
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return __builtin_convertvector(values != values ? (bits >> 16) | 0x40 : rounded, Halves);
}

// A stored element, or kLanes of them, widened and narrowed as Element does it.
template <class Element, class T = Vector>
T load(const typename Element::Stored* from) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return Element::widen(*from);
  } else if constexpr (sizeof(*from) == sizeof(float)) {
    return read<Vector>(from);
  } else {
    return std::bit_cast<Vector>(widen(read<Halves>(from)) << 16);
  }
}

template <class Element>
void store(typename Element::Stored* to, Vector values) {
  if constexpr (sizeof(*to) == sizeof(float)) {
    std::memcpy(to, &values, sizeof(values));
  } else {
    const Halves narrowed = narrow(values);
    std::memcpy(to, &narrowed, sizeof(narrowed));
  }
}

// out[c] = f(x[c], c), where f takes a float and a Vector and does the same to each lane. out may be x.
template <class In, class Out, class F>
void transform(const typename In::Stored* x, int64_t count, typename Out::Stored* out, F f) {
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) store<Out>(out + c, f(load<In>(x + c), c));
  for (; c < count; ++c) out[c] = Out::narrow(f(In::widen(x[c]), c));
}

}  // namespace
}  // namespace bridle
