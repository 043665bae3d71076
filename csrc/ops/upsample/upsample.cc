#include "bridle/upsample.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <stdexcept>

#include "bridle/checks.h"

namespace bridle {
namespace {

int64_t source(int64_t place, int64_t size, int64_t out_size) {
  if (out_size == 2 * size) return place / 2;
  const float scale = static_cast<float>(size) / static_cast<float>(out_size);
  return std::min(static_cast<int64_t>(std::floor(static_cast<float>(place) * scale)), size - 1);
}

}  // namespace

Upsample upsample_of(const Strided& x, const Strided& out) {
  if (x.shape.size() != 4 || out.shape.size() != 4 || x.shape[0] != out.shape[0] || x.shape[3] != out.shape[3]) {
    throw std::invalid_argument("out is " + text(out.shape) + ", wants the rows and channels of " + text(x.shape));
  }
  check_compact("x", x, x.dtype, x.shape);
  check_compact("out", out, x.dtype, out.shape);
  for (const int64_t side : x.shape) {
    if (side < 1) throw std::invalid_argument("x is " + text(x.shape) + ", wants sides of 1 or more");
  }
  return {x.data,     out.data,     x.shape[0],   x.shape[1],
          x.shape[2], out.shape[1], out.shape[2], x.shape[3] * (x.dtype == Dtype::kFloat32 ? 4 : 2)};
}

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
