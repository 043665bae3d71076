#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_softmax.h"
#include "ops/gemm/avx512_bf16_vector.h"

namespace bridle {
namespace {

void store_bfloat16(void* weights, int64_t i, __mmask16 lanes, __m512 values) {
  const __m256bh narrowed = _mm512_cvtneps_pbh(values);
  _mm256_mask_storeu_epi16(static_cast<uint16_t*>(weights) + i, lanes, reinterpret_cast<const __m256i&>(narrowed));
}

SoftmaxResult softmax_bfloat16(const SoftmaxArguments& arguments) { return avx512_softmax(arguments, store_bfloat16); }

}  // namespace

const AttentionVariant& avx512_attention_bfloat16() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Avx512Bf16, BFloat16, 6>(softmax_bfloat16, std::make_integer_sequence<int, 4>());
  return kVariant;
}

}  // namespace bridle
