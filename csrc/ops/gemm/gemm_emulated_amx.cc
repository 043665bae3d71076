#include "ops/gemm/emulated_block.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {

const GemmVariant& emulated_amx_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {.isa = Isa::kEmulatedAmx,
                                           .dtype = Dtype::kBFloat16,
                                           .rows = 32,
                                           .panel_width = 64,
                                           .tile = matrix_unit_tile<EmulatedBlock, 4>,
                                           .epilogue = finish<BFloat16>,
                                           .block_rows = 128,
                                           .block_depth = 160};
  return kVariant;
}

}  // namespace bridle
