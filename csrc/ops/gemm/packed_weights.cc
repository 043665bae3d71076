#include "bridle/packed_weights.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "bridle/aligned_buffer.h"
#include "bridle/checks.h"
#include "ops/gemm/panel_packing.h"
#include "ops/gemm/variant.h"
#include "ops/rounding.h"

namespace bridle {
namespace {

constexpr int64_t kAlignment = AlignedBuffer::kAlignment;

// Matrix units and VDPBF16PS read bfloat16 in pairs.
bool in_pairs(const GemmVariant& variant) { return variant.dtype == Dtype::kBFloat16 && variant.isa != Isa::kScalar; }

using PackPlaces = void (*)(const PlaceRows&, const RowShape&, int64_t width, int64_t first, void* panel);

template <class From>
PackPlaces packing_from(const GemmVariant& variant) {
  if (variant.dtype == Dtype::kFloat32) return pack_places<Float32Words<From>>;
  return in_pairs(variant) ? pack_places<BFloat16Pairs<From>> : pack_places<BFloat16Words<From>>;
}

RowShape row_shape(const Strided& weight, const GemmVariant& variant) {
  const bool flat = weight.shape.size() == 2;
  if (!flat && weight.shape.size() != 3) {
    throw std::invalid_argument("weight is " + text(weight.shape) + ", wants [N, K] or [N, taps, channels]");
  }
  if (weight.dtype == Dtype::kFloat16) throw std::invalid_argument("weight is float16, wants float32 or bfloat16");
  if (in_pairs(variant) && weight.shape.back() % 2 != 0) {
    throw std::invalid_argument("weight has " + std::to_string(weight.shape.back()) +
                                " channels, wants an even number");
  }
  return {flat ? 1 : weight.shape[1], flat ? 0 : weight.strides[1], weight.shape.back(), weight.strides.back()};
}

// Tensors of the same layout, their rows one tensor after another.
class Stack {
 public:
  Stack(const std::vector<Strided>& weights, const GemmVariant& variant) {
    if (weights.empty()) throw std::invalid_argument("weight wants one tensor or more");
    const Strided& first = weights.front();
    shape_ = row_shape(first, variant);
    pack_ = first.dtype == Dtype::kFloat32 ? packing_from<Float32>(variant) : packing_from<BFloat16>(variant);
    for (const Strided& weight : weights) {
      const RowShape shape = row_shape(weight, variant);
      if (weight.dtype != first.dtype || shape != shape_) {
        throw std::invalid_argument("weights that are stacked want one dtype, shape of a row and strides");
      }
      for (int64_t i = 0; i < weight.shape[0]; ++i) {
        rows_.push_back(static_cast<const std::byte*>(weight.data) +
                        i * weight.strides[0] * element_bytes(first.dtype));
      }
    }
  }

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t k() const { return shape_.taps * shape_.channels; }
  const void* row(int64_t index) const { return rows_[index]; }
  void pack(const PlaceRows& rows, int64_t width, int64_t first, void* panel) const {
    pack_(rows, shape_, width, first, panel);
  }

 private:
  RowShape shape_;
  PackPlaces pack_;
  std::vector<const void*> rows_;
};

// Gates lie behind the values that they belong to.
void pack_panel(const Stack& stack, const PackedWeights& weights, int64_t panel, std::byte* out) {
  const int64_t width = weights.variant().panel_width, outputs = weights.panel_outputs(), n = weights.n();
  for (int64_t first = 0; first < width; first += kPlaces) {
    PlaceRows rows;
    for (int64_t j = 0; j < kPlaces; ++j) {
      const int64_t place = first + j, output = panel * outputs + place % outputs;
      rows[j] = output < n ? stack.row(output + (place >= outputs ? n : 0)) : nullptr;
    }
    stack.pack(rows, width, first, out);
  }
}

void check(const WeightFormat& format) {
  if (format.n < 1) throw std::invalid_argument("gemm: n is " + std::to_string(format.n) + ", wants 1 or more");
  if (format.widths.empty()) throw std::invalid_argument("gemm: widths is empty, wants one span or more");
  for (const int64_t width : format.widths) {
    if (width < 1 || (format.dtype == Dtype::kBFloat16 && width % 2 != 0)) {
      throw std::invalid_argument("gemm: a width is " + std::to_string(width) +
                                  (format.dtype == Dtype::kBFloat16 ? ", wants an even number" : ", wants 1 or more"));
    }
  }
}

}  // namespace

PackedWeights::PackedWeights(WeightFormat format)
    : format_(std::move(format)), variant_(&gemm_variant(format_.dtype, format_.isa)) {
  check(format_);
  k_ = std::accumulate(widths().begin(), widths().end(), int64_t{0});
  panels_ = divide_up(n(), panel_outputs());
  panel_bytes_ = round_up(k_ * variant_->panel_width * element_bytes(dtype()), kAlignment);
  zeros_.resize(*std::max_element(widths().begin(), widths().end()) * element_bytes(dtype()));
}

PackedWeights::PackedWeights(WeightFormat format, const std::vector<Strided>& weights, ThreadPool& pool)
    : PackedWeights(std::move(format)) {
  const Stack stack(weights, *variant_);
  if (stack.rows() != biases() || stack.k() != k_) {
    throw std::invalid_argument("weight has " + text({stack.rows(), stack.k()}) + " elements, wants " +
                                text({biases(), k_}));
  }
  const auto packed = std::make_shared<AlignedBuffer>(bytes());
  pool.run(panels_, [&](int64_t panel) {
    std::byte* const out = packed->data() + panel * panel_bytes_;
    pack_panel(stack, *this, panel, out);
    const int64_t used = k_ * variant_->panel_width * element_bytes(dtype());
    std::memset(out + used, 0, panel_bytes_ - used);
  });
  data_ = packed->data();
  owner_ = packed;
}

PackedWeights::PackedWeights(WeightFormat format, const std::byte* packed, size_t bytes,
                             std::shared_ptr<const void> owner)
    : PackedWeights(std::move(format)) {
  if (bytes != this->bytes() || reinterpret_cast<uintptr_t>(packed) % kAlignment != 0) {
    throw std::invalid_argument("packed weights are " + std::to_string(bytes) + " bytes, want " +
                                std::to_string(this->bytes()) + " from a multiple of 64 on");
  }
  data_ = packed;
  owner_ = std::move(owner);
}

std::string PackedWeights::layout(Dtype dtype, Isa isa) {
  const GemmVariant& variant = gemm_variant(dtype, isa);
  return std::string(dtype == Dtype::kFloat32 ? "float32" : "bfloat16") + (in_pairs(variant) ? " pairs" : "") + " x " +
         std::to_string(variant.panel_width) + ", version " + std::to_string(kVersion);
}

int64_t PackedWeights::panel_outputs() const { return variant_->panel_width / (gated() ? 2 : 1); }

}  // namespace bridle
