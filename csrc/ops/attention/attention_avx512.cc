#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_softmax.h"
#include "ops/gemm/avx512_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

SoftmaxResult softmax_float32(const SoftmaxArguments& arguments) {
  return avx512_softmax(arguments, [](void* weights, int64_t i, __mmask16 lanes, __m512 values) {
    _mm512_mask_storeu_ps(static_cast<float*>(weights) + i, lanes, values);
  });
}

}  // namespace

const AttentionVariant& avx512_attention_float32() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kFloat32,
      6,
      16,
      4,
      1,
      {tile<Avx512, 6, 1>, tile<Avx512, 6, 2>, tile<Avx512, 6, 3>, tile<Avx512, 6, 4>},
      softmax_float32,
      rescale,
      add_scaled,
      narrow<Float32>};
  return kVariant;
}

}  // namespace bridle
