#include "bridle/conv2d.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <utility>

#include "bridle/checks.h"

namespace bridle {
namespace {

// Of `size` places, the one that nearest-neighbour upsampling to `full` has at `place`, as PyTorch rounds.
int64_t nearest(int64_t place, int64_t size, int64_t full) {
  if (full == size) return place;
  if (full == 2 * size) return place / 2;
  const float scale = static_cast<float>(size) / static_cast<float>(full);
  return std::min(static_cast<int64_t>(std::floor(static_cast<float>(place) * scale)), size - 1);
}

// What every place of a padded side reads, -1 outside of the image.
std::vector<int32_t> sources_of_side(int64_t places, int64_t padding, int64_t size, int64_t full) {
  std::vector<int32_t> found(places, -1);
  for (int64_t i = padding; i < std::min(places, padding + full); ++i) {
    found[i] = static_cast<int32_t>(nearest(i - padding, size, full));
  }
  return found;
}

}  // namespace

ConvGeometry conv_geometry(const std::vector<int64_t>& shape, const std::vector<int64_t>& kernel, int64_t stride,
                           const std::vector<int64_t>& padding, const std::vector<int64_t>& upsample) {
  const auto require = [](bool good, const char* what) {
    if (!good) throw std::invalid_argument(what);
  };
  require(kernel.size() == 2 && kernel[0] > 0 && kernel[1] > 0, "kernel wants two numbers of 1 or more");
  require(padding.size() == 4, "padding wants left, right, top and bottom");
  for (const int64_t side : padding) require(side >= 0, "padding wants numbers of 0 or more");
  require(stride > 0, "stride wants 1 or more");
  require(upsample.empty() || (upsample.size() == 2 && upsample[0] > 0 && upsample[1] > 0),
          "upsample wants nothing or two numbers of 1 or more");
  const int64_t full_height = upsample.empty() ? shape[1] : upsample[0];
  const int64_t full_width = upsample.empty() ? shape[2] : upsample[1];
  const int64_t spare_height = full_height + padding[2] + padding[3] - kernel[0];
  const int64_t spare_width = full_width + padding[0] + padding[1] - kernel[1];
  require(spare_height >= 0, "source is less high than the kernel");
  require(spare_width >= 0, "source is narrower than the kernel");
  return {shape[0],  shape[1],  shape[2], full_height, full_width, spare_height / stride + 1, spare_width / stride + 1,
          kernel[0], kernel[1], stride,   padding[2],  padding[0]};
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
    : sources_(std::move(sources)),
      g_(geometry),
      zeros_(zeros),
      bytes_(bytes),
      lines_(
          sources_of_side((g_.out_height - 1) * g_.stride + g_.kernel_height, g_.pad_top, g_.height, g_.full_height)),
      columns_(
          sources_of_side((g_.out_width - 1) * g_.stride + g_.kernel_width, g_.pad_left, g_.width, g_.full_width)) {}

void ConvRows::rows(int64_t span, int64_t first, int64_t count, const void** out) const {
  const auto sources = static_cast<int64_t>(sources_.size());
  const ConvSource& source = sources_[span % sources];
  const int64_t tap = span / sources, pixel_bytes = source.channels * bytes_;
  const int32_t* const lines = lines_.data() + tap / g_.kernel_width;
  const int32_t* const columns = columns_.data() + tap % g_.kernel_width;
  int64_t row = first / (g_.out_height * g_.out_width), y = first / g_.out_width % g_.out_height,
          x = first % g_.out_width;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t line = lines[y * g_.stride], column = columns[x * g_.stride];
    const int64_t place = (row * g_.height + line) * g_.width + column;
    const bool inside = line >= 0 && column >= 0;
    out[i] = inside ? static_cast<const std::byte*>(source.data) + place * pixel_bytes : zeros_;
    if (++x < g_.out_width) continue;
    x = 0;
    if (++y < g_.out_height) continue;
    y = 0;
    ++row;
  }
}

}  // namespace bridle
