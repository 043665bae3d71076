#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_softmax.h"
#include "ops/gemm/avx512_vector.h"

namespace bridle {
namespace {

SoftmaxResult softmax_float32(const SoftmaxArguments& arguments) {
  return avx512_softmax(arguments, [](void* weights, int64_t i, __mmask16 lanes, __m512 values) {
    _mm512_mask_storeu_ps(static_cast<float*>(weights) + i, lanes, values);
  });
}

}  // namespace

const AttentionVariant& avx512_attention_float32() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Avx512, Float32, 6>(softmax_float32, std::make_integer_sequence<int, 4>());
  return kVariant;
}

}  // namespace bridle
