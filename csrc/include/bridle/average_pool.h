// Means of windows of images with channels last.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// From one place to before another.
struct Span {
  int64_t begin, end;
};

// x: [rows, height, width, channels] of float32 or bfloat16. lines, columns: what each line and column of out averages.
// Sums are float32, of a line first and then of lines.
struct AveragePool {
  const void* x = nullptr;
  void* out = nullptr;
  int64_t rows = 0, height = 0, width = 0, channels = 0;
  Dtype dtype = Dtype::kFloat32;
  std::vector<Span> lines, columns;
};

// Blocks of 2x2; a block at an odd edge averages what it has. x: [R, h, w, C]. out: [R, ceil(h / 2), ceil(w / 2), C].
// Throws std::invalid_argument for what does not fit.
AveragePool halving_pool_of(const Strided& x, const Strided& out);

// Windows that cover the image for an out of any size [R, h', w', C]: line i averages from floor(i h / h') to
// ceil((i + 1) h / h').
AveragePool area_pool_of(const Strided& x, const Strided& out);

void average_pool(const AveragePool& arguments, ThreadPool& pool);

}  // namespace bridle
