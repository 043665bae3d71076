#include "ops/gemm/avx512_bf16_vector.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {

const GemmVariant& avx512_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {Isa::kAvx512Bf16,       Dtype::kBFloat16, 6, 64,
                                           tile<Avx512Bf16, 6, 4>, finish<BFloat16>};
  return kVariant;
}

}  // namespace bridle
