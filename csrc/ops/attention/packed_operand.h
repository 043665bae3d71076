// The right operands of attention's products, packed for a variant's tiles: keys as [channels][keys], values as
// [keys][channels].
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/attention/attention_kernels.h"
#include "ops/element.h"

namespace bridle {

struct Panel {
  int64_t first;    // output
  int64_t vectors;  // the panel is so many vectors wide
};

// A matrix of `depth` by `count`: panels of outputs one after another, each with all of `depth`. Its last panels are
// about equally wide, so that none of them is a single vector where that can be helped.
class PackedLayout {
 public:
  PackedLayout(int64_t depth, int64_t count, const AttentionVariant& variant)
      : depth_((depth + variant.depth - 1) / variant.depth * variant.depth), variant_(&variant) {
    int64_t left = (count + variant.lanes - 1) / variant.lanes, first = 0;
    while (left > 0) {
      const int64_t vectors =
          left > 2 * variant.vectors ? variant.vectors : (left > variant.vectors ? (left + 1) / 2 : left);
      panels_.push_back({first, vectors});
      first += vectors * variant.lanes;
      left -= vectors;
    }
    width_ = first;
  }

  const std::vector<Panel>& panels() const { return panels_; }
  int64_t width() const { return width_; }  // outputs with padding
  int64_t bytes() const { return (depth_ * width_ * element() + 63) / 64 * 64; }
  int64_t element() const { return variant_->dtype == Dtype::kFloat32 ? 4 : 2; }

  // Where a panel's elements from `from` on begin; `from` is a multiple of the variant's depth.
  int64_t offset(const Panel& panel, int64_t from) const {
    return (depth_ * panel.first + from * panel.vectors * variant_->lanes) * element();
  }

  // Packs get(k, output), float32; the padding is 0.
  template <class Get>
  void pack(std::byte* out, int64_t depth, int64_t count, const Get& get) const {
    for (const Panel& panel : panels_) {
      const int64_t wide = panel.vectors * variant_->lanes;
      std::byte* const start = out + offset(panel, 0);
      for (int64_t k = 0; k < depth_; ++k) {
        for (int64_t j = 0; j < wide; ++j) {
          const bool inside = k < depth && panel.first + j < count;
          store(start, (k / variant_->depth * wide + j) * variant_->depth + k % variant_->depth,
                inside ? get(k, panel.first + j) : 0.0f);
        }
      }
    }
  }

 private:
  void store(std::byte* start, int64_t place, float value) const {
    if (variant_->dtype == Dtype::kFloat32) {
      std::memcpy(start + place * 4, &value, 4);
    } else {
      const uint16_t bits = BFloat16::narrow(value);
      std::memcpy(start + place * 2, &bits, 2);
    }
  }

  int64_t depth_, width_ = 0;
  const AttentionVariant* variant_;
  std::vector<Panel> panels_;
};

}  // namespace bridle
