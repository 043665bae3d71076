// The right operand of matrix products, in the order in which a variant reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bridle/isa.h"
#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

struct GemmVariant;

// widths: of the spans whose concatenation is K. dtype: of the packed weights, float32 or bfloat16. gated: there are
// 2 N rows of weights, values before gates.
struct WeightFormat {
  int64_t n = 0;
  std::vector<int64_t> widths;
  Dtype dtype = Dtype::kFloat32;
  Isa isa = Isa::kScalar;
  bool gated = false;
};

// Panels of `panel_width` outputs, and in a panel all of K: [K][panel width], or for bfloat16 in vectors
// [K / 2][panel width][2]. What is behind the last output is zero.
class PackedWeights {
 public:
  // Counts changes of what packed bytes mean: bytes of another version are not to be read.
  static constexpr int kVersion = 1;

  // weights: stacked rows, N or 2 N of them, each float32 or bfloat16, [rows, K] or [rows, taps, channels], with any
  // strides. Narrowing rounds to nearest, ties to even. Throws std::invalid_argument for a format that makes no sense,
  // a variant that the dtype lacks (the CPU must have it: see isa_from_name), odd widths in bfloat16, and weights that
  // do not fit.
  PackedWeights(WeightFormat format, const std::vector<Strided>& weights, ThreadPool& pool);

  // Bytes that were packed before, aligned to a cache line, as long as `owner` lives. Throws std::invalid_argument
  // where their number is another.
  PackedWeights(WeightFormat format, const std::byte* packed, size_t bytes, std::shared_ptr<const void> owner);

  // What packed bytes depend on beside the weights, their widths and whether they are gated.
  static std::string layout(Dtype dtype, Isa isa);

  int64_t n() const { return format_.n; }
  bool gated() const { return format_.gated; }
  int64_t biases() const { return gated() ? 2 * n() : n(); }
  int64_t panel_outputs() const;
  int64_t panels() const { return panels_; }
  Dtype dtype() const { return format_.dtype; }
  const std::vector<int64_t>& widths() const { return format_.widths; }
  const GemmVariant& variant() const { return *variant_; }
  const std::byte* panel(int64_t index) const { return data_ + index * panel_bytes_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return static_cast<size_t>(panels_ * panel_bytes_); }
  // As many zeros as the widest span: what lies outside of an image.
  const void* zeros() const { return zeros_.data(); }

 private:
  explicit PackedWeights(WeightFormat format);

  WeightFormat format_;
  const GemmVariant* variant_;
  int64_t k_ = 0, panels_ = 0, panel_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
  std::vector<std::byte> zeros_;
};

}  // namespace bridle
