#include "ops/attention/attention_loops.h"
#include "ops/gemm/scalar_vector.h"

namespace bridle {

const AttentionVariant& scalar_attention_float32() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Scalar<Float32>, Float32, 2>(softmax<Float32>, std::make_integer_sequence<int, 8>());
  return kVariant;
}

}  // namespace bridle
