#include "ops/gemm/avx512_vector.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {

const GemmVariant& avx512_gemm_float32() {
  static constexpr GemmVariant kVariant = {Isa::kAvx512, Dtype::kFloat32, 6, 64, tile<Avx512, 6, 4>, finish<Float32>};
  return kVariant;
}

}  // namespace bridle
