// The inner loop of residual adds.
#pragma once

#include <cstdint>

#include "bridle/residual_add.h"

namespace bridle {

// Adds what the terms have for positions [first, end) of a row to it.
using AddResiduals = void (*)(const ResidualImage& image, const std::vector<ResidualTerm>& terms, int64_t row,
                              int64_t first, int64_t end);

AddResiduals scalar_add_residuals(Dtype dtype);
AddResiduals avx2_add_residuals(Dtype dtype);
AddResiduals avx512_add_residuals(Dtype dtype);

}  // namespace bridle
