// The segments of an attention from what bridle_kernels.attention.native says of them.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "bridle/attention.h"

namespace bridle::python {

// q: [*, N, H, d]; rows: of the output. The tensors must outlive what reads the segments: only their addresses are
// kept. Throws std::invalid_argument for what does not fit.
std::vector<AttentionSegment> segments_of(const pybind11::list& segments, const Strided& q, int64_t rows);

}  // namespace bridle::python
