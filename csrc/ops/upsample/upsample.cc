#include "bridle/upsample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

namespace bridle {
namespace {

int64_t source(int64_t place, int64_t size, int64_t out_size) {
  if (out_size == 2 * size) return place / 2;
  const float scale = static_cast<float>(size) / static_cast<float>(out_size);
  return std::min(static_cast<int64_t>(std::floor(static_cast<float>(place) * scale)), size - 1);
}

}  // namespace

void upsample(const Upsample& a, ThreadPool& pool) {
  pool.run(a.rows * a.out_height, [&](int64_t line) {
    const int64_t from_line = line / a.out_height * a.height + source(line % a.out_height, a.height, a.out_height);
    const auto* const from = static_cast<const std::byte*>(a.x) + from_line * a.width * a.pixel_bytes;
    auto* const to = static_cast<std::byte*>(a.out) + line * a.out_width * a.pixel_bytes;
    for (int64_t x = 0; x < a.out_width; ++x) {
      std::memcpy(to + x * a.pixel_bytes, from + source(x, a.width, a.out_width) * a.pixel_bytes, a.pixel_bytes);
    }
  });
}

}  // namespace bridle
