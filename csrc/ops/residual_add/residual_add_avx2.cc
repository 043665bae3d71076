#include "ops/residual_add/residual_loops.h"

namespace bridle {

AddResiduals avx2_add_residuals(Dtype dtype) { return add_residuals_of(dtype); }

}  // namespace bridle
