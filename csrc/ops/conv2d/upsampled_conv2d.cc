#include "bridle/upsampled_conv2d.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace bridle {
namespace {

int64_t line_parity(int64_t phase) { return phase / 2; }
int64_t column_parity(int64_t phase) { return phase % 2; }

void check_alike(const PhaseWeights& weights) {
  if (static_cast<int64_t>(weights.size()) != kPhases) {
    throw std::invalid_argument("phases are " + std::to_string(weights.size()) + ", want " + std::to_string(kPhases));
  }
  if (std::find(weights.begin(), weights.end(), nullptr) != weights.end()) {
    throw std::invalid_argument("a phase is None");
  }
  const PackedWeights& first = *weights.front();
  const auto alike = [&](const auto& other) { return other->n() == first.n() && other->dtype() == first.dtype(); };
  if (!std::all_of(weights.begin(), weights.end(), alike)) {
    throw std::invalid_argument("phases want one number of outputs and one dtype");
  }
}

}  // namespace

std::vector<ConvSource> phase_sources(const PhaseWeights& weights, const std::vector<Strided>& sources) {
  check_alike(weights);
  std::vector<ConvSource> found = conv_sources(*weights.front(), sources);
  for (int64_t i = 0; i < kPhases; ++i) check_spans(*weights[i], found, phase_geometry(sources.front().shape, i));
  return found;
}

ConvGeometry phase_geometry(const std::vector<int64_t>& shape, int64_t phase) {
  const int64_t y = line_parity(phase), x = column_parity(phase);
  return conv_geometry(shape, {2, 2}, 1, {1 - x, x, 1 - y, y}, {});
}

GemmArguments whole_arguments(const PhaseWeights& weights, const std::vector<int64_t>& shape,
                              const ProductTensors& tensors, const std::string& activation) {
  return product_arguments(*weights.front(), shape[0], kPhases * shape[1] * shape[2], tensors, activation);
}

GemmArguments phase_arguments(const GemmArguments& whole, const ConvGeometry& geometry, int64_t phase) {
  GemmArguments a = whole;
  const int64_t width = geometry.out_width;
  a.m = whole.m / kPhases;
  a.positions = whole.positions / kPhases;
  a.places = {width, 4 * width, 2, line_parity(phase) * 2 * width + column_parity(phase)};
  return a;
}

}  // namespace bridle
