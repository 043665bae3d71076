// The inner loops of normalisation, over a few positions at a time.
#pragma once

#include <cstdint>

#include "bridle/gemm.h"

namespace bridle {

// Mean and sum of squared deviations of one channel over some positions.
struct Moments {
  float mean;
  float deviation;
};

struct NormKernels {
  // x: [positions, channels] of one source. out: [channels].
  void (*moments)(const void* x, int64_t positions, int64_t channels, Moments* out);
  // out[p][c] = activation((x[p][c] - mean[c]) * factor[c] + offset[c]), out rows `stride` elements apart.
  void (*apply)(const void* x, int64_t positions, int64_t channels, const float* mean, const float* factor,
                const float* offset, Activation activation, void* out, int64_t stride);
  // One row of layer normalisation.
  void (*layer)(const void* x, int64_t channels, double eps, const float* weight, const float* bias, void* out);
};

const NormKernels& scalar_norm(Dtype dtype);
const NormKernels& avx2_norm(Dtype dtype);
const NormKernels& avx512_norm(Dtype dtype);

}  // namespace bridle
