#include "ops/norm/norm_loops.h"

namespace bridle {

const NormKernels& avx512_norm(Dtype dtype) { return norm_kernels(dtype); }

}  // namespace bridle
