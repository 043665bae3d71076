#include <immintrin.h>

#include "ops/gemm/avx512_sums.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

// Sixteen floats in a zmm register.
struct Avx512 : Avx512Sums {
  using Stored = float;
  using Panel = __m512;
  static constexpr int64_t kDepth = 1;
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
