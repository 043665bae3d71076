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

// The input is as large as its sources, and read as if nearest-neighbour upsampling had made it full_height by
// full_width: the large image is never in memory.
struct ConvGeometry {
  int64_t rows, height, width;
  int64_t full_height, full_width;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride;
  int64_t pad_top, pad_left;
};

// shape: [R, h, w, C] of a source. kernel: height, width. padding: left, right, top, bottom. upsample: height, width,
// or nothing for the source's own. Throws std::invalid_argument for what makes no sense.
ConvGeometry conv_geometry(const std::vector<int64_t>& shape, const std::vector<int64_t>& kernel, int64_t stride,
                           const std::vector<int64_t>& padding, const std::vector<int64_t>& upsample);

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
  std::vector<int32_t> lines_, columns_;  // of the input, for every place of the padded image; -1 = outside
};

}  // namespace bridle
