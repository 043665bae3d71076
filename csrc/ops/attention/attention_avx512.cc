#include "ops/attention/attention_loops.h"
#include "ops/attention/avx512_softmax.h"
#include "ops/gemm/avx512_vector.h"

namespace bridle {
namespace {

void store_float32(void* weights, int64_t i, __mmask16 lanes, __m512 values) {
  _mm512_mask_storeu_ps(static_cast<float*>(weights) + i, lanes, values);
}

SoftmaxResult weigh_float32(const SoftmaxArguments& a, float scale, float maximum) {
  return exact_softmax(maximum, weigh_scores(a, scale, maximum, store_float32));
}

SoftmaxResult softmax_float32(const SoftmaxArguments& arguments) { return avx512_softmax(arguments, weigh_float32); }

}  // namespace

const AttentionVariant& avx512_attention_float32() {
  static constexpr AttentionVariant kVariant =
      attention_variant<Avx512, Float32, 6>(softmax_float32, std::make_integer_sequence<int, 4>());
  return kVariant;
}

}  // namespace bridle
