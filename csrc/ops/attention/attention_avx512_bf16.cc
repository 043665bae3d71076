#include "ops/attention/attention_loops.h"
#include "ops/gemm/avx512_bf16_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {

const AttentionVariant& avx512_attention_bfloat16() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kBFloat16,
      6,
      16,
      4,
      2,
      {tile<Avx512Bf16, 6, 1>, tile<Avx512Bf16, 6, 2>, tile<Avx512Bf16, 6, 3>, tile<Avx512Bf16, 6, 4>},
      softmax<BFloat16>,
      rescale,
      add_scaled,
      narrow<BFloat16>};
  return kVariant;
}

}  // namespace bridle
