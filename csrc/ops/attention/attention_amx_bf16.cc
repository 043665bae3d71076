#include "ops/attention/avx512_bf16_softmax.h"
#include "ops/attention/matrix_unit_attention.h"
#include "ops/gemm/amx_block.h"

namespace bridle {

const AttentionVariant& amx_attention_bfloat16() {
  static constexpr AttentionVariant kVariant = matrix_unit_attention<AmxBlock>(softmax_bfloat16);
  return kVariant;
}

}  // namespace bridle
