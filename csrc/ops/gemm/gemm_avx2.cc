#include "ops/gemm/avx2_vector.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {

const GemmVariant& avx2_gemm_float32() {
  static constexpr GemmVariant kVariant = {Isa::kAvx2, Dtype::kFloat32, 6, 16, tile<Avx2, 6, 2>, finish<Float32>};
  return kVariant;
}

}  // namespace bridle
