// The right operand of matrix products, in the order in which a variant reads it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bridle/aligned_buffer.h"
#include "bridle/isa.h"
#include "bridle/strided.h"

namespace bridle {

struct GemmVariant;

// Weights in the order in which a variant reads them: panels of `panel_width` outputs, and in a panel all of K.
class PackedWeights {
 public:
  // weight: [N, K] float32, K the concatenation of the spans. dtype: of the packed weights, float32 or bfloat16
  // (rounded to nearest, ties to even). gated: weight is [2 N, K], values before gates. Throws std::invalid_argument
  // for a variant that the dtype lacks (the CPU must have it: see isa_from_name), and for odd widths in bfloat16.
  PackedWeights(const float* weight, int64_t n, std::vector<int64_t> widths, Dtype dtype, Isa isa, bool gated = false);

  int64_t n() const { return n_; }
  bool gated() const { return gated_; }
  int64_t biases() const { return gated_ ? 2 * n_ : n_; }
  int64_t panel_outputs() const;
  int64_t panels() const { return panels_; }
  Dtype dtype() const { return dtype_; }
  const std::vector<int64_t>& widths() const { return widths_; }
  const GemmVariant& variant() const { return *variant_; }
  const std::byte* panel(int64_t index) const { return data_.data() + index * panel_bytes_; }
  size_t bytes() const { return static_cast<size_t>(panels_ * panel_bytes_); }
  // As many zeros as the widest span: what lies outside of an image.
  const void* zeros() const { return zeros_.data(); }

 private:
  void pack_panel(const float* weight, int64_t index);
  const float* weight_row(const float* weight, int64_t panel, int64_t place) const;

  int64_t n_, k_, panels_, panel_bytes_;
  std::vector<int64_t> widths_;
  Dtype dtype_;
  bool gated_;
  const GemmVariant* variant_;
  AlignedBuffer data_;
  std::vector<std::byte> zeros_;
};

}  // namespace bridle
