#include "ops/gemm/amx_block.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {

// 160 elements of K: 20 KiB of the panel, 10 KiB of the left operand and 8 KiB of sums stay in 48 KiB of L1 while four
// tiles go over the same part of the panel, and the channels of Stable Diffusion are multiples of it.
const GemmVariant& amx_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {.isa = Isa::kAmxBf16,
                                           .dtype = Dtype::kBFloat16,
                                           .rows = 32,
                                           .panel_width = 64,
                                           .tile = matrix_unit_tile<AmxBlock, 4>,
                                           .epilogue = finish<BFloat16>,
                                           .block_rows = 128,
                                           .block_depth = 160,
                                           .enter = AmxBlock<2>::enter,
                                           .leave = AmxBlock<2>::leave};
  return kVariant;
}

}  // namespace bridle
