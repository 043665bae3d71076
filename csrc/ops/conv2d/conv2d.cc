#include "bridle/conv2d.h"

#include <cstddef>
#include <utility>

namespace bridle {

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
