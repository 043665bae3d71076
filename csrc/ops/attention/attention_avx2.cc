#include "ops/attention/attention_loops.h"
#include "ops/attention/avx2_softmax.h"
#include "ops/gemm/avx2_vector.h"

namespace bridle {

const AttentionVariant& avx2_attention_float32() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Avx2, Float32, 6>(avx2_softmax, std::make_integer_sequence<int, 2>());
  return kVariant;
}

}  // namespace bridle
