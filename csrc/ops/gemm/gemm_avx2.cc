#include "ops/gemm/avx2_vector.h"
#include "ops/gemm/epilogue.h"
#include "ops/gemm/tile.h"

namespace bridle {

const GemmVariant& avx2_gemm_float32() {
  static constexpr GemmVariant kVariant = {.isa = Isa::kAvx2,
                                           .dtype = Dtype::kFloat32,
                                           .rows = 6,
                                           .panel_width = 16,
                                           .tile = tile<Avx2, 6, 2>,
                                           .epilogue = finish<Float32>,
                                           .task_panels = 4};
  return kVariant;
}

}  // namespace bridle
