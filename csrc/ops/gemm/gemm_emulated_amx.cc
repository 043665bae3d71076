#include "ops/gemm/emulated_block.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {

const GemmVariant& emulated_amx_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {
      Isa::kEmulatedAmx, Dtype::kBFloat16, 32, 64, matrix_unit_tile<EmulatedBlock, 4>, finish<BFloat16>, 128, 160};
  return kVariant;
}

}  // namespace bridle
