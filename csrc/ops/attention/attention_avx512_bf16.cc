#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_bf16_softmax.h"
#include "ops/gemm/avx512_bf16_vector.h"

namespace bridle {
const AttentionVariant& avx512_attention_bfloat16() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Avx512Bf16, BFloat16, 6>(softmax_bfloat16, std::make_integer_sequence<int, 4>());
  return kVariant;
}

}  // namespace bridle
