// Nearest-neighbour resampling of images with channels last.
#pragma once

#include <cstdint>

#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// x: [rows, height, width] pixels of `pixel_bytes` each. out: [rows, out_height, out_width] pixels.
struct Upsample {
  const void* x = nullptr;
  void* out = nullptr;
  int64_t rows = 0, height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t pixel_bytes = 0;
};

// x: [R, h, w, C]. out: [R, h', w', C]. Throws std::invalid_argument for what does not fit.
Upsample upsample_of(const Strided& x, const Strided& out);

// Output y reads y * (height / out_height) in float32, rounded down, as PyTorch's "nearest" does.
void upsample(const Upsample& arguments, ThreadPool& pool);

}  // namespace bridle
