#include "bindings/convolution.h"

#include <stdexcept>

#include "bindings/arguments.h"

namespace bridle::python {

ConvGeometry conv_geometry(const std::vector<int64_t>& shape, const std::vector<int64_t>& kernel, int64_t stride,
                           const std::vector<int64_t>& padding, int64_t upsample) {
  const auto require = [](bool good, const char* what) {
    if (!good) throw std::invalid_argument(what);
  };
  require(kernel.size() == 2 && kernel[0] > 0 && kernel[1] > 0, "kernel wants two numbers of 1 or more");
  require(padding.size() == 4, "padding wants left, right, top and bottom");
  for (const int64_t side : padding) require(side >= 0, "padding wants numbers of 0 or more");
  require(stride > 0, "stride wants 1 or more");
  require(upsample > 0, "upsample wants 1 or more");
  require(shape[1] * upsample + padding[2] + padding[3] >= kernel[0], "source is less high than the kernel");
  require(shape[2] * upsample + padding[0] + padding[1] >= kernel[1], "source is narrower than the kernel");
  ConvGeometry g{shape[0], shape[1], shape[2], 0, 0, kernel[0], kernel[1], stride, padding[2], padding[0], upsample};
  g.out_width = (shape[2] * upsample + padding[0] + padding[1] - kernel[1]) / stride + 1;
  g.out_height = (shape[1] * upsample + padding[2] + padding[3] - kernel[0]) / stride + 1;
  return g;
}

void check_spans(const PackedWeights& weights, const std::vector<ConvSource>& sources, const ConvGeometry& geometry) {
  std::vector<int64_t> widths;
  for (int64_t tap = 0; tap < geometry.kernel_height * geometry.kernel_width; ++tap) {
    for (const ConvSource& source : sources) widths.push_back(source.channels);
  }
  if (widths != weights.widths()) {
    throw std::invalid_argument("weights have spans " + text(weights.widths()) + ", want " + text(widths));
  }
}

}  // namespace bridle::python
