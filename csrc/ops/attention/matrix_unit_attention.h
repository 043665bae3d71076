// Attention over a matrix unit.
#pragma once

#include "ops/attention/attention_loops.h"
#include "ops/gemm/matrix_unit_tile.h"

namespace bridle {
namespace {

// 64 queries are two tiles high.
template <template <int> class Block>
constexpr AttentionVariant matrix_unit_attention(SoftmaxResult (*softmax_of_block)(const SoftmaxArguments&)) {
  return {
      Dtype::kBFloat16,
      32,
      16,
      4,
      2,
      {matrix_unit_tile<Block, 1>, matrix_unit_tile<Block, 2>, matrix_unit_tile<Block, 3>, matrix_unit_tile<Block, 4>},
      softmax_of_block,
      rescale,
      add_scaled,
      write<Float32>,
      write<BFloat16>,
      narrow<BFloat16>,
      kUnitDepth,
      64,
      Block<2>::enter,
      Block<2>::leave};
}

}  // namespace
}  // namespace bridle
