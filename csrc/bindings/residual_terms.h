// The residuals of a point from what bridle_kernels.native_ops says of them.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "bridle/residual_add.h"

namespace bridle::python {

// terms: dicts of values [r or 1, positions or 1, C], rows, scale and mask [r, positions] or None. The tensors must
// outlive what reads the terms: only their addresses are kept. Throws std::invalid_argument for what does not fit.
std::vector<ResidualTerm> residual_terms(const pybind11::list& terms, const ResidualImage& image);

}  // namespace bridle::python
