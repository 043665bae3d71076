// The geometry of a convolution from what Python says of it.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/conv2d.h"

namespace bridle::python {

// shape: [R, h, w, C] of a source. kernel: height, width. padding: left, right, top, bottom. Throws
// std::invalid_argument for what makes no sense.
ConvGeometry conv_geometry(const std::vector<int64_t>& shape, const std::vector<int64_t>& kernel, int64_t stride,
                           const std::vector<int64_t>& padding, int64_t upsample);

// Throws std::invalid_argument unless the weights have a span for each tap and source.
void check_spans(const PackedWeights& weights, const std::vector<ConvSource>& sources, const ConvGeometry& geometry);

}  // namespace bridle::python
