#include "bridle/conv2d.h"

#include <cstddef>

namespace bridle {

std::vector<const void*> conv_rows(const std::vector<ConvSource>& sources, const ConvGeometry& g, const void* zeros,
                                   int64_t bytes) {
  std::vector<const void*> pointers;
  pointers.reserve(g.kernel_height * g.kernel_width * sources.size() * g.rows * g.out_height * g.out_width);
  const int64_t height = g.height * g.upsample, width = g.width * g.upsample;
  for (int64_t tap = 0; tap < g.kernel_height * g.kernel_width; ++tap) {
    for (const ConvSource& source : sources) {
      for (int64_t pixel = 0; pixel < g.rows * g.out_height * g.out_width; ++pixel) {
        const int64_t row = pixel / (g.out_height * g.out_width);
        const int64_t y = pixel / g.out_width % g.out_height * g.stride - g.pad_top + tap / g.kernel_width;
        const int64_t x = pixel % g.out_width * g.stride - g.pad_left + tap % g.kernel_width;
        const bool inside = y >= 0 && y < height && x >= 0 && x < width;
        const int64_t place = (row * g.height + y / g.upsample) * g.width + x / g.upsample;
        pointers.push_back(inside ? static_cast<const std::byte*>(source.data) + place * source.channels * bytes
                                  : zeros);
      }
    }
  }
  return pointers;
}

}  // namespace bridle
