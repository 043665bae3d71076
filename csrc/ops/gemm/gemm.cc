#include "bridle/gemm.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "bridle/aligned_buffer.h"
#include "ops/gemm/variant.h"
#include "ops/rounding.h"

namespace bridle {
namespace {

constexpr int64_t kAlignment = AlignedBuffer::kAlignment;

}  // namespace

const GemmVariant& gemm_variant(Dtype dtype, Isa isa) {
  if (dtype == Dtype::kFloat32) {
#if defined(__x86_64__)
    if (contains(isa, Isa::kAvx512)) return avx512_gemm_float32();
    if (contains(isa, Isa::kAvx2)) return avx2_gemm_float32();
#endif
    return scalar_gemm_float32();
  }
  if (dtype == Dtype::kBFloat16) {
#if defined(__x86_64__)
    if (contains(isa, Isa::kAmxBf16)) return amx_gemm_bfloat16();
    if (contains(isa, Isa::kAvx512Bf16)) return avx512_gemm_bfloat16();
#endif
    if (isa == Isa::kEmulatedAmx) return emulated_amx_gemm_bfloat16();
    if (isa == Isa::kScalar) return scalar_gemm_bfloat16();
  }
  throw std::invalid_argument("gemm: no " + isa_name(isa) + " variant for this dtype");
}

namespace {

// The rows of a product in blocks that differ by one tile at most: equal tasks are shared out evenly.
class RowBlocks {
 public:
  RowBlocks(const GemmVariant& variant, int64_t m)
      : m_(m), rows_(variant.rows), tiles_(divide_up(m, rows_)), count_(divide_up(m, variant.block_rows)) {}

  int64_t count() const { return count_; }
  // The first row of a block; that of the block behind the last is m.
  int64_t first(int64_t block) const { return std::min(m_, block * tiles_ / count_ * rows_); }

 private:
  int64_t m_, rows_, tiles_, count_;
};

// One task: a block of rows times neighbouring panels. sums: [block rows][panels of the task][panel width].
class Block {
 public:
  Block(const PackedWeights& weights, const GemmArguments& a, int64_t first, int64_t end, int64_t group, float* sums)
      : weights_(weights),
        variant_(weights.variant()),
        a_(a),
        first_(first),
        count_(end - first),
        panel_(group * variant_.task_panels),
        panels_(std::min(variant_.task_panels, weights.panels() - panel_)),
        stride_(panels_ * variant_.panel_width),
        sums_(sums) {}

  void run() {
    variant_.enter();
    add_spans();
    variant_.leave();
    for (int64_t i = 0; i < count_; ++i) finish_row(i);
  }

 private:
  void add_spans() {
    int64_t k = 0;
    for (size_t span = 0; span < weights_.widths().size(); ++span) {
      const int64_t width = weights_.widths()[span];
      read_rows(static_cast<int64_t>(span));
      for (int64_t from = 0; from < width; from += variant_.block_depth) {
        const int64_t depth = std::min(variant_.block_depth, width - from);
        add(from, depth, k);
        k += depth;
      }
    }
  }

  // Rows behind the last repeat it; their sums are never read.
  void read_rows(int64_t span) {
    a_.left->rows(span, first_, count_, rows_.data());
    std::fill(rows_.begin() + count_, rows_.end(), rows_[count_ - 1]);
  }

  // Adds `depth` elements of the span that was read, from `from` on, which are K's elements from k on.
  void add(int64_t from, int64_t depth, int64_t k) {
    const int64_t width = variant_.panel_width;
    for (int64_t p = 0; p < panels_; ++p) {
      const std::byte* panel = weights_.panel(panel_ + p) + k * width * element_bytes(weights_.dtype());
      for (int64_t i = 0; i < count_; i += variant_.rows) {
        variant_.tile({rows_.data() + i, from, depth, panel, sums_ + i * stride_ + p * width, stride_, k == 0});
      }
    }
  }

  // The values and gates of a panel lie together; without gates the panels of a task are one row of outputs.
  void finish_row(int64_t i) {
    const int64_t outputs = weights_.panel_outputs();
    if (!weights_.gated()) return finish(i, 0, panels_ * outputs);
    for (int64_t p = 0; p < panels_; ++p) finish(i, p, outputs);
  }

  // `outputs` of row i from panel p of the task on.
  void finish(int64_t i, int64_t p, int64_t outputs) {
    const int64_t row = first_ + i, column = (panel_ + p) * weights_.panel_outputs(), n = weights_.n();
    const int64_t place = a_.places.place(row);
    const float* const sums = sums_ + i * stride_ + p * variant_.panel_width;
    const float* const bias = a_.bias == nullptr ? nullptr : a_.bias + column;
    const int64_t bytes = element_bytes(weights_.dtype());
    const auto at = [&](const void* base, int64_t stride) {
      return static_cast<const std::byte*>(base) + (place * stride + column) * bytes;
    };
    variant_.epilogue({sums, weights_.gated() ? sums + outputs : nullptr, bias, bias == nullptr ? nullptr : bias + n,
                       a_.shift == nullptr ? nullptr : a_.shift + row / a_.positions * a_.shift_stride + column,
                       a_.residual == nullptr ? nullptr : at(a_.residual, a_.residual_stride),
                       const_cast<std::byte*>(at(a_.out, a_.out_stride)), std::min(outputs, n - column),
                       a_.activation});
  }

  const PackedWeights& weights_;
  const GemmVariant& variant_;
  const GemmArguments& a_;
  const int64_t first_, count_, panel_, panels_, stride_;
  float* const sums_;
  std::array<const void*, kMostBlockRows + kMostTileRows> rows_;
};

}  // namespace

void gemm(const PackedWeights& weights, const GemmArguments& arguments, ThreadPool& pool) {
  const RowBlocks blocks(weights.variant(), arguments.m);
  const int64_t groups = divide_up(weights.panels(), weights.variant().task_panels);
  pool.run(blocks.count() * groups, [&](int64_t task) {
    alignas(kAlignment) float sums[kMostBlockRows * kMostTaskWidth];
    const int64_t block = task / groups, group = task % groups;
    Block(weights, arguments, blocks.first(block), blocks.first(block + 1), group, sums).run();
  });
}

}  // namespace bridle
