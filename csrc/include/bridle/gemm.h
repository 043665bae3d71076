// Matrix products that read their left operand row by row, wherever it lies. With one span it is a linear layer; a
// convolution has a span for every tap and source, so nothing is ever unfolded or concatenated:
//   out[m, n] = activation(sum over spans s and c < width_s of row(s, m)[c] * weight[n, s, c]
//                          + bias[n] + shift[m / positions, n] + residual[m, n])
// Gated weights have 2 N rows: out[m, n] = (sum of row n) * gelu(sum of row N + n), the GEGLU of transformers.
// Sums are float32 and in an order that depends on K alone: a row's bits do not depend on its neighbours.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bridle/packed_weights.h"
#include "bridle/thread_pool.h"

namespace bridle {

enum class Activation { kNone, kSilu, kRelu, kGelu, kQuickGelu, kTanh };

// Where the rows of a left operand begin, each of `width` elements of the weights' dtype.
class LeftOperand {
 public:
  // Rows first ... first + count - 1 of a span.
  virtual void rows(int64_t span, int64_t first, int64_t count, const void** out) const = 0;

 protected:
  ~LeftOperand() = default;
};

// A matrix whose rows are `stride` bytes apart.
class MatrixRows final : public LeftOperand {
 public:
  MatrixRows(const void* data, int64_t stride) : data_(static_cast<const std::byte*>(data)), stride_(stride) {}
  void rows(int64_t, int64_t first, int64_t count, const void** out) const override {
    for (int64_t i = 0; i < count; ++i) out[i] = data_ + (first + i) * stride_;
  }

 private:
  const std::byte* data_;
  int64_t stride_;
};

// Where the rows of a product lie in its output: lines of `line` rows that begin `line_stride` places apart, and whose
// rows are `stride` places apart. Without more said, one after another.
struct OutputRows {
  int64_t line = 1;
  int64_t line_stride = 1;
  int64_t stride = 1;
  int64_t first = 0;
  int64_t place(int64_t row) const { return first + row / line * line_stride + row % line * stride; }
};

struct GemmArguments {
  const LeftOperand* left = nullptr;
  int64_t m = 0;
  const float* bias = nullptr;   // [N], [2 N] for gated weights, or absent
  const float* shift = nullptr;  // [m / positions, N] or absent, its rows `shift_stride` apart
  int64_t shift_stride = 0;
  int64_t positions = 1;           // rows that share a row of `shift`
  const void* residual = nullptr;  // [places, N] of the weights' dtype or absent, `stride` elements apart
  int64_t residual_stride = 0;
  void* out = nullptr;  // [places, N] of the weights' dtype
  int64_t out_stride = 0;
  OutputRows places;
  Activation activation = Activation::kNone;
};

void gemm(const PackedWeights& weights, const GemmArguments& arguments, ThreadPool& pool);

}  // namespace bridle
