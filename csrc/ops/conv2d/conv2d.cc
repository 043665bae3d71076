#include "bridle/conv2d.h"

#include <cstddef>
#include <stdexcept>
#include <utility>

#include "bridle/checks.h"

namespace bridle {

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

ConvRows::ConvRows(std::vector<ConvSource> sources, const ConvGeometry& geometry, const void* zeros, int64_t bytes)
    : sources_(std::move(sources)), g_(geometry), zeros_(zeros), bytes_(bytes) {}

void ConvRows::rows(int64_t span, int64_t first, int64_t count, const void** out) const {
  const auto sources = static_cast<int64_t>(sources_.size());
  const ConvSource& source = sources_[span % sources];
  const int64_t tap = span / sources, pixel_bytes = source.channels * bytes_;
  const int64_t height = g_.height * g_.upsample, width = g_.width * g_.upsample;
  int64_t row = first / (g_.out_height * g_.out_width), y = first / g_.out_width % g_.out_height,
          x = first % g_.out_width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t from_y = y * g_.stride - g_.pad_top + tap / g_.kernel_width;
    const int64_t from_x = x * g_.stride - g_.pad_left + tap % g_.kernel_width;
    const bool inside = from_y >= 0 && from_y < height && from_x >= 0 && from_x < width;
    const int64_t place = (row * g_.height + from_y / g_.upsample) * g_.width + from_x / g_.upsample;
    out[i] = inside ? static_cast<const std::byte*>(source.data) + place * pixel_bytes : zeros_;
    if (++x < g_.out_width) continue;
    x = 0;
    if (++y < g_.out_height) continue;
    y = 0;
    ++row;
  }
}

}  // namespace bridle
