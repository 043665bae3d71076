// A 3x3 convolution, padded by one, of an image that nearest-neighbour upsampling makes exactly twice as high and wide,
// as four 2x2 convolutions of the small image: outputs whose line and column are of one parity, a *phase*, read the
// same pixels. With w the weights of three lines, line 2 i of the output is w[0] of line i - 1 and w[1] + w[2] of line
// i, line 2 i + 1 is w[0] + w[1] of line i and w[2] of line i + 1, and columns alike: 4 taps where there were 9.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bridle/conv2d.h"
#include "bridle/gemm.h"
#include "bridle/op_arguments.h"

namespace bridle {

// Phases in the order of (line, column) parity: (0, 0), (0, 1), (1, 0), (1, 1).
constexpr int64_t kPhases = 4;

// Weights of 2x2 taps for each phase.
using PhaseWeights = std::vector<std::shared_ptr<PackedWeights>>;

// sources: [R, h, w, C] each. Throws std::invalid_argument unless there are weights of four phases, alike, and all have
// a span for each tap and source.
std::vector<ConvSource> phase_sources(const PhaseWeights& weights, const std::vector<Strided>& sources);

// The convolution of a phase; shape: [R, h, w, C] of the small image.
ConvGeometry phase_geometry(const std::vector<int64_t>& shape, int64_t phase);

// The product of all phases, without left operand. shape: as above. tensors: their rows are those of the large image,
// R * 2 h * 2 w of them.
GemmArguments whole_arguments(const PhaseWeights& weights, const std::vector<int64_t>& shape,
                              const ProductTensors& tensors, const std::string& activation);

// What of it is the product of a phase.
GemmArguments phase_arguments(const GemmArguments& whole, const ConvGeometry& geometry, int64_t phase);

}  // namespace bridle
