#include "ops/attention/matrix_unit_attention.h"
#include "ops/gemm/emulated_block.h"

namespace bridle {

const AttentionVariant& emulated_amx_attention_bfloat16() {
  static constexpr AttentionVariant kVariant = matrix_unit_attention<EmulatedBlock>(softmax<BFloat16>);
  return kVariant;
}

}  // namespace bridle
