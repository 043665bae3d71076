#include "ops/attention/attention_loops.h"
#include "ops/gemm/avx2_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {

const AttentionVariant& avx2_attention_float32() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kFloat32, 6, 8, 2, 1, {tile<Avx2, 6, 1>, tile<Avx2, 6, 2>}, softmax<Float32>, rescale, add_scaled,
      narrow<Float32>};
  return kVariant;
}

}  // namespace bridle
