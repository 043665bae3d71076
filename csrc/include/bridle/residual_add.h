// x += scale * mask * values, for the residuals of several branches in one pass over x.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/isa.h"
#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// values: of x's dtype, [r or 1, positions or 1, C] with consecutive channels, strides 0 where they are broadcast.
// rows [r]: the rows of x. scale [r]. mask: [r, positions] float32 with consecutive positions, or absent.
struct ResidualTerm {
  const void* values = nullptr;
  int64_t row_stride = 0, position_stride = 0;
  std::vector<int32_t> rows;
  std::vector<float> scale;
  const float* mask = nullptr;
  int64_t mask_stride = 0;
};

// x: [rows, positions, C], contiguous, float32 or bfloat16. Sums are float32, rounded once. Rows that no term names
// keep their bits.
struct ResidualImage {
  void* x = nullptr;
  int64_t rows = 0, positions = 0, channels = 0;
  Dtype dtype = Dtype::kFloat32;
};

// x: [R, positions, C]. Throws std::invalid_argument for what is no such image.
ResidualImage residual_image(const Strided& x);

void residual_add(const ResidualImage& image, const std::vector<ResidualTerm>& terms, Isa isa, ThreadPool& pool);

}  // namespace bridle
