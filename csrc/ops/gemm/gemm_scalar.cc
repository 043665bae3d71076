#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {
namespace {

template <class Element>
struct Scalar {
  using Stored = typename Element::Stored;
  using Sum = float;
  using Panel = Stored;
  static constexpr int64_t kLanes = 1;
  static constexpr int64_t kDepth = 1;
  static float zero() { return 0.0f; }
  static float load_sum(const float* p) { return *p; }
  static void store_sum(float* p, float v) { *p = v; }
  static float add(float a, float b) { return a + b; }
  static Stored load_panel(const Stored* p) { return *p; }
  static float load_left(const Stored* p) { return Element::widen(*p); }
  static float multiply_add(float left, Stored right, float sum) { return left * Element::widen(right) + sum; }
};

}  // namespace

const GemmVariant& scalar_gemm_float32() {
  static constexpr GemmVariant kVariant = {Isa::kScalar,   Dtype::kFloat32, 2, 8, tile<Scalar<Float32>, 2, 8>,
                                           finish<Float32>};
  return kVariant;
}

const GemmVariant& scalar_gemm_bfloat16() {
  static constexpr GemmVariant kVariant = {Isa::kScalar,    Dtype::kBFloat16, 2, 8, tile<Scalar<BFloat16>, 2, 8>,
                                           finish<BFloat16>};
  return kVariant;
}

}  // namespace bridle
