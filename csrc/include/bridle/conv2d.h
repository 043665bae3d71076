// Convolutions as matrix products: which pixel every output reads at every tap, as row pointers for `gemm`.
#pragma once

#include <cstdint>
#include <vector>

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

// [kernel_height * kernel_width * sources][rows * out_height * out_width] pointers, taps outermost. zeros: what a tap
// outside of the image reads, as wide as the widest source. bytes: of an element.
std::vector<const void*> conv_rows(const std::vector<ConvSource>& sources, const ConvGeometry& geometry,
                                   const void* zeros, int64_t bytes);

}  // namespace bridle
