// Residual adds in the vectors of each variant. FMA contraction is off, so all variants give the same bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/residual_add/residual_kernels.h"
#include "ops/vector.h"

namespace bridle {
namespace {

constexpr int64_t kChannels = 512;  // summed on the stack at a time

// out = in + factor * values.
template <class In, class Values, class Out>
void add_scaled(const typename In::Stored* in, float factor, const typename Values::Stored* values, int64_t count,
                typename Out::Stored* out) {
  transform<In, Out>(in, count, out,
                     [=]<class T>(T sum, int64_t c) -> T { return sum + factor * load<Values, T>(values + c); });
}

// The sums of one position's channels: float32 from the first term to the last, which rounds them. Each term waits for
// the next, to know which it is.
template <class Element>
class Sums {
 public:
  using Stored = typename Element::Stored;

  Sums(Stored* x, int64_t count) : x_(x), count_(count) {}

  void add(float factor, const Stored* values) {
    if (values_ != nullptr && summed_) add_scaled<Float32, Element, Float32>(sums_, factor_, values_, count_, sums_);
    if (values_ != nullptr && !summed_) add_scaled<Element, Element, Float32>(x_, factor_, values_, count_, sums_);
    summed_ = values_ != nullptr;
    factor_ = factor;
    values_ = values;
  }

  void finish() {
    if (values_ != nullptr && summed_) add_scaled<Float32, Element, Element>(sums_, factor_, values_, count_, x_);
    if (values_ != nullptr && !summed_) add_scaled<Element, Element, Element>(x_, factor_, values_, count_, x_);
  }

 private:
  Stored* const x_;
  const int64_t count_;
  float sums_[kChannels];
  bool summed_ = false;
  float factor_ = 0.0f;
  const Stored* values_ = nullptr;
};

template <class Element>
void add_residuals(const ResidualImage& image, const std::vector<ResidualTerm>& terms, int64_t row, int64_t first,
                   int64_t end) {
  using Stored = typename Element::Stored;
  for (int64_t position = first; position < end; ++position) {
    auto* const pixel = static_cast<Stored*>(image.x) + (row * image.positions + position) * image.channels;
    for (int64_t c = 0; c < image.channels; c += kChannels) {
      Sums<Element> sums(pixel + c, std::min(kChannels, image.channels - c));
      for (const ResidualTerm& term : terms) {
        for (size_t i = 0; i < term.rows.size(); ++i) {
          if (term.rows[i] != row) continue;
          const auto place = static_cast<int64_t>(i);
          const float factor =
              term.scale[i] * (term.mask == nullptr ? 1.0f : term.mask[place * term.mask_stride + position]);
          sums.add(factor, static_cast<const Stored*>(term.values) + place * term.row_stride +
                               position * term.position_stride + c);
        }
      }
      sums.finish();
    }
  }
}

inline AddResiduals add_residuals_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? add_residuals<Float32> : add_residuals<BFloat16>;
}

}  // namespace
}  // namespace bridle
