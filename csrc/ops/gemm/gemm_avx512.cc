#include <immintrin.h>

#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

// Sixteen floats in a zmm register. 6 rows of 4 vectors are 24 sums and 4 of the panel: 28 of 32, and the 6 row
// pointers stay in general registers.
struct Avx512 {
  using Stored = float;
  using Sum = __m512;
  using Panel = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kDepth = 1;
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 load_sum(const float* p) { return _mm512_loadu_ps(p); }
  static void store_sum(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 load_panel(const float* p) { return _mm512_loadu_ps(p); }
  static __m512 load_left(const float* p) { return _mm512_set1_ps(*p); }
  static __m512 multiply_add(__m512 left, __m512 right, __m512 sum) { return _mm512_fmadd_ps(left, right, sum); }
};

}  // namespace

const GemmVariant& avx512_gemm_float32() {
  static constexpr GemmVariant kVariant = {Isa::kAvx512, Dtype::kFloat32, 6, 64, tile<Avx512, 6, 4>, finish<Float32>};
  return kVariant;
}

}  // namespace bridle
