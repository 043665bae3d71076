#include "ops/attention/attention_loops.h"
#include "ops/gemm/scalar_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {

const AttentionVariant& scalar_attention_float32() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kFloat32,
      2,
      1,
      8,
      1,
      {tile<Scalar<Float32>, 2, 1>, tile<Scalar<Float32>, 2, 2>, tile<Scalar<Float32>, 2, 3>,
       tile<Scalar<Float32>, 2, 4>, tile<Scalar<Float32>, 2, 5>, tile<Scalar<Float32>, 2, 6>,
       tile<Scalar<Float32>, 2, 7>, tile<Scalar<Float32>, 2, 8>},
      softmax<Float32>,
      rescale,
      add_scaled,
      narrow<Float32>};
  return kVariant;
}

}  // namespace bridle
