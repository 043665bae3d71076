#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_softmax.h"
#include "ops/gemm/avx512_bf16_vector.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

void store_bfloat16(void* weights, int64_t i, __mmask16 lanes, __m512 values) {
  const __m256bh narrowed = _mm512_cvtneps_pbh(values);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(weights) + i, lanes, reinterpret_cast<const __m256i&>(narrowed));
}

SoftmaxResult softmax_bfloat16(const SoftmaxArguments& arguments) { return avx512_softmax(arguments, store_bfloat16); }

}  // namespace

const AttentionVariant& avx512_attention_bfloat16() {
  static constexpr AttentionVariant kVariant = {
      Dtype::kBFloat16,
      6,
      16,
      4,
      2,
      {tile<Avx512Bf16, 6, 1>, tile<Avx512Bf16, 6, 2>, tile<Avx512Bf16, 6, 3>, tile<Avx512Bf16, 6, 4>},
      softmax_bfloat16,
      rescale,
      add_scaled,
      narrow<BFloat16>};
  return kVariant;
}

}  // namespace bridle
