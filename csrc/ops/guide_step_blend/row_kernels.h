// The inner loops: one image row at a time, contiguous floats.
#pragma once

#include <cstdint>

namespace bridle {

struct RowKernels {
  void (*accumulate)(float* total, const float* term, float coefficient, int64_t n);  // total += c term
  void (*accumulate_weighted)(float* total, const float* term, const float* weight, float coefficient,
                              int64_t n);                                     // total += (c term) weight
  void (*blend)(float* x, const float* mask, const float* level, int64_t n);  // x = mask x + (1 - mask) level
  void (*widen_half)(float* out, const uint16_t* in, int64_t n);
  void (*widen_bfloat16)(float* out, const uint16_t* in, int64_t n);
};

const RowKernels& scalar_row_kernels();
const RowKernels& avx2_row_kernels();
const RowKernels& avx512_row_kernels();

}  // namespace bridle
