#include "ops/attention/attention_loops.h"
#include "ops/gemm/avx512_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {

const AttentionVariant& avx512_attention_float32() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kFloat32,
      6,
      16,
      4,
      1,
      {tile<Avx512, 6, 1>, tile<Avx512, 6, 2>, tile<Avx512, 6, 3>, tile<Avx512, 6, 4>},
      softmax<Float32>,
      rescale,
      add_scaled,
      narrow<Float32>};
  return kVariant;
}

}  // namespace bridle
