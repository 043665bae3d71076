// The right operands of attention's products, packed for a variant's tiles: keys as [channels][keys], values as
// [keys][channels].
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/attention/attention_kernels.h"
#include "ops/element.h"
#include "ops/rounding.h"

namespace bridle {

// Keys whose scores are held at a time: with the queries', what fits into L1 and a part of L2.
constexpr int64_t kBlockKeys = 256;

// A matrix in memory: element (k, output) lies at k * k_stride + output * stride.
struct MatrixView {
  const void* data;
  Dtype dtype;
  int64_t k_stride, stride;
};

struct Panel {
  int64_t first;    // output
  int64_t vectors;  // the panel is so many vectors wide
};

// A matrix of `depth` by `count`: panels of outputs one after another, each with all of `depth`. Its last panels are
// about equally wide, so that none of them is a single vector where that can be helped. None lies in two blocks of
// keys: where blocks end must not depend on how many keys there are.
class PackedLayout {
 public:
  PackedLayout(int64_t depth, int64_t count, const AttentionVariant& variant)
      : own_depth_(depth), depth_(round_up(depth, variant.step)), count_(count), variant_(&variant) {
    int64_t left = divide_up(count, variant.lanes), first = 0;
    while (left > 0) {
      const int64_t own = std::min(left, (kBlockKeys - first % kBlockKeys) / variant.lanes);
      const int64_t vectors =
          own > 2 * variant.vectors ? variant.vectors : (own > variant.vectors ? (own + 1) / 2 : own);
      panels_.push_back({first, vectors});
      first += vectors * variant.lanes;
      left -= vectors;
    }
    width_ = first;
  }

  const std::vector<Panel>& panels() const { return panels_; }
  int64_t width() const { return width_; }  // outputs with padding
  int64_t bytes() const { return round_up(depth_ * width_ * element(), 64); }
  int64_t element() const { return element_bytes(variant_->dtype); }

  // Where a panel's elements from `from` on begin; `from` is a multiple of the variant's depth.
  int64_t offset(const Panel& panel, int64_t from) const {
    return (depth_ * panel.first + from * panel.vectors * variant_->lanes) * element();
  }

  // Packs the elements source[k * k_stride + output * stride] of a matrix; the padding is 0.
  void pack(std::byte* out, const MatrixView& source) const {
    if (variant_->dtype == Dtype::kBFloat16) {
      source.dtype == Dtype::kBFloat16 ? pack_as<BFloat16, BFloat16>(out, source)
                                       : pack_as<Float32, BFloat16>(out, source);
    } else {
      source.dtype == Dtype::kBFloat16 ? pack_as<BFloat16, Float32>(out, source)
                                       : pack_as<Float32, Float32>(out, source);
    }
  }

 private:
  template <class From, class To>
  void pack_as(std::byte* out, const MatrixView& source) const {
    const auto* const from = static_cast<const typename From::Stored*>(source.data);
    for (const Panel& panel : panels_) {
      const int64_t wide = panel.vectors * variant_->lanes, inside = std::min(wide, count_ - panel.first);
      auto* const start = reinterpret_cast<typename To::Stored*>(out + offset(panel, 0));
      for (int64_t k = 0; k < depth_; ++k) {
        auto* const row = start + k / variant_->depth * wide * variant_->depth + k % variant_->depth;
        const auto* const line = from + k * source.k_stride + panel.first * source.stride;
        const int64_t count = k < own_depth_ ? inside : 0;
        for (int64_t j = 0; j < count; ++j) row[j * variant_->depth] = To::narrow(From::widen(line[j * source.stride]));
        for (int64_t j = count; j < wide; ++j) row[j * variant_->depth] = 0;
      }
    }
  }

  int64_t own_depth_, depth_, count_, width_ = 0;  // depth_: own_depth_ with padding
  const AttentionVariant* variant_;
  std::vector<Panel> panels_;
};

}  // namespace bridle
