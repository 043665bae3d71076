// Convolutions as matrix products: which pixel every output reads at every tap, as the left operand of `gemm`.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/gemm.h"

namespace bridle {

// Pixels [rows, height, width, channels], channels last and contiguous.
struct ConvSource {
  const void* data;
  int64_t channels;
};

// Sizes are those of the output; the input is as large as its sources. upsample: every input pixel is read as a square
// of that side, so nearest-neighbour upsampling costs nothing.
struct ConvGeometry {
  int64_t rows, height, width;  // of the input, before upsampling
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride;
  int64_t pad_top, pad_left;
  int64_t upsample;
};

// shape: [R, h, w, C] of a source. kernel: height, width. padding: left, right, top, bottom. Throws
// std::invalid_argument for what makes no sense.
ConvGeometry conv_geometry(const std::vector<int64_t>& shape, const std::vector<int64_t>& kernel, int64_t stride,
                           const std::vector<int64_t>& padding, int64_t upsample);

// Throws std::invalid_argument unless the weights have a span for each tap and source.
void check_spans(const PackedWeights& weights, const std::vector<ConvSource>& sources, const ConvGeometry& geometry);

// A row for each output pixel, a span for each tap and source, taps outermost.
class ConvRows final : public LeftOperand {
 public:
  // zeros: what a tap outside of the image reads, as wide as the widest source. bytes: of an element.
  ConvRows(std::vector<ConvSource> sources, const ConvGeometry& geometry, const void* zeros, int64_t bytes);
  void rows(int64_t span, int64_t first, int64_t count, const void** out) const override;

 private:
  std::vector<ConvSource> sources_;
  ConvGeometry g_;
  const void* zeros_;
  int64_t bytes_;
};

}  // namespace bridle
