#include "ops/gemm/epilogue.h"
#include "ops/gemm/scalar_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {

const GemmVariant& scalar_gemm_float32() {
  static constexpr GemmVariant kVariant = {Isa::kScalar,   Dtype::kFloat32, 2, 8, tile<Scalar<Float32>, 2, 8>,
                                           finish<Float32>};
  return kVariant;
}

const GemmVariant& scalar_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {Isa::kScalar,    Dtype::kBFloat16, 2, 8, tile<Scalar<BFloat16>, 2, 8>,
                                           finish<BFloat16>};
  return kVariant;
}

}  // namespace bridle
