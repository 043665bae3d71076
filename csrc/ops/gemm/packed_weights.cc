#include "bridle/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/element.h"
#include "ops/gemm/variant.h"

namespace bridle {
namespace {

constexpr int64_t kAlignment = AlignedBuffer::kAlignment;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace

PackedWeights::PackedWeights(const float* weight, int64_t n, std::vector<int64_t> widths, Dtype dtype, Isa isa,
                             bool gated)
    : n_(n), widths_(std::move(widths)), dtype_(dtype), gated_(gated), variant_(&gemm_variant(dtype, isa)) {
  if (n < 1) throw std::invalid_argument("gemm: n is " + std::to_string(n) + ", wants 1 or more");
  if (widths_.empty()) throw std::invalid_argument("gemm: widths is empty, wants one span or more");
  for (const int64_t width : widths_) {
    if (width < 1 || (dtype == Dtype::kBFloat16 && width % 2 != 0)) {
      throw std::invalid_argument("gemm: a width is " + std::to_string(width) +
                                  (dtype == Dtype::kBFloat16 ? ", wants an even number" : ", wants 1 or more"));
    }
  }
  k_ = std::accumulate(widths_.begin(), widths_.end(), int64_t{0});
  panels_ = round_up(n, panel_outputs()) / panel_outputs();
  panel_bytes_ = round_up(k_ * variant_->panel_width * element_bytes(dtype), kAlignment);
  data_ = AlignedBuffer(bytes());
  zeros_.resize(*std::max_element(widths_.begin(), widths_.end()) * element_bytes(dtype));
  for (int64_t panel = 0; panel < panels_; ++panel) pack_panel(weight, panel);
}

int64_t PackedWeights::panel_outputs() const { return variant_->panel_width / (gated_ ? 2 : 1); }

// The row of weights at a place of a panel, or nullptr where the panel is wider than what is left. Gates lie behind the
// values that they belong to.
const float* PackedWeights::weight_row(const float* weight, int64_t panel, int64_t place) const {
  const int64_t outputs = panel_outputs(), output = panel * outputs + place % outputs;
  if (output >= n_) return nullptr;
  return weight + (output + (place >= outputs ? n_ : 0)) * k_;
}

void PackedWeights::pack_panel(const float* weight, int64_t index) {
  const int64_t width = variant_->panel_width,
                depth = dtype_ == Dtype::kBFloat16 && variant_->isa != Isa::kScalar ? 2 : 1;
  std::byte* const out = data_.data() + index * panel_bytes_;
  for (int64_t k = 0; k < k_; ++k) {
    for (int64_t j = 0; j < width; ++j) {
      const float* const row = weight_row(weight, index, j);
      const float value = row == nullptr ? 0.0f : row[k];
      const int64_t place = (k / depth * width + j) * depth + k % depth;
      if (dtype_ == Dtype::kFloat32) {
        std::memcpy(out + place * 4, &value, 4);
      } else {
        const uint16_t narrow = BFloat16::narrow(value);
        std::memcpy(out + place * 2, &narrow, 2);
      }
    }
  }
}

}  // namespace bridle
