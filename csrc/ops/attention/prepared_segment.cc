#include "ops/attention/prepared_segment.h"

#include <algorithm>

namespace bridle {
namespace {

float element(const Strided& tensor, int64_t place) {
  if (tensor.dtype == Dtype::kFloat32) return static_cast<const float*>(tensor.data)[place];
  return BFloat16::widen(static_cast<const uint16_t*>(tensor.data)[place]);
}

const void* address(const Strided& tensor, int64_t place) {
  return static_cast<const std::byte*>(tensor.data) + place * element_bytes(tensor.dtype);
}

// Where row `row` of a tensor [rows or 1, L, H, d] begins for a head.
int64_t start_of(const Strided& tensor, int64_t row, int64_t head) {
  return (tensor.shape[0] == 1 ? 0 : row * tensor.strides[0]) + head * tensor.strides[2];
}

// Where a source stands among those that are packed; a new one is added.
template <class Source>
int64_t slot_of(std::vector<Source>& sources, const Source& wanted) {
  const auto found = std::find(sources.begin(), sources.end(), wanted);
  if (found != sources.end()) return found - sources.begin();
  sources.push_back(wanted);
  return static_cast<int64_t>(sources.size()) - 1;
}

}  // namespace

PreparedSegment::PreparedSegment(const AttentionSegment& segment, int64_t heads, int64_t dim,
                                 const AttentionVariant& variant)
    : segment_(segment), heads_(heads), dim_(dim), first_keys_{0} {
  for (const AttentionPiece& piece : segment.pieces) {
    const int64_t keys = piece.k.shape[1];
    first_keys_.push_back(first_keys_.back() + keys);
    key_layouts_.emplace_back(dim, keys, variant);
    value_layouts_.emplace_back(keys, dim, variant);
    keys_bytes_ += key_layouts_.back().bytes();
    values_bytes_ += value_layouts_.back().bytes();
  }
  for (int64_t row = 0; row < static_cast<int64_t>(segment.k_rows.size()); ++row) {
    const bool has = present(row);
    key_slots_.push_back(has ? slot_of(key_sources_, {segment.k_rows[row], 0}) : -1);
    value_slots_.push_back(has ? slot_of(value_sources_, value_source(row)) : -1);
  }
  bytes_ = heads_ * (static_cast<int64_t>(key_sources_.size()) * keys_bytes_ +
                     static_cast<int64_t>(value_sources_.size()) * values_bytes_);
}

bool PreparedSegment::present(int64_t row) const {
  if (segment_.q_rows[row] < 0 || segment_.k_rows[row] < 0 || segment_.v_rows[row] < 0) return false;
  if (!reports() && !segment_.weights && segment_.weight == 0.0f) return false;
  return std::any_of(segment_.pieces.begin(), segment_.pieces.end(),
                     [row](const AttentionPiece& piece) { return piece.lengths[row] > 0; });
}

PreparedSegment::Source PreparedSegment::value_source(int64_t row) const {
  const bool own = mixes() && segment_.v_mix.shape[0] > 1;
  return {segment_.v_rows[row], own ? static_cast<int32_t>(row) : 0};
}

void PreparedSegment::pack(int64_t task, AlignedBuffer& mixed) const {
  const int64_t source = task / heads_, head = task % heads_, keys = static_cast<int64_t>(key_sources_.size());
  if (source < keys) {
    pack_keys(key_sources_[source], source, head);
  } else {
    pack_values(value_sources_[source - keys], source - keys, head, mixed);
  }
}

void PreparedSegment::pack_keys(const Source& source, int64_t slot, int64_t head) const {
  std::byte* out = data_ + (slot * heads_ + head) * keys_bytes_;
  for (int64_t i = 0; i < pieces(); ++i) {
    const Strided& k = segment_.pieces[i].k;
    key_layouts_[i].pack(out, {address(k, start_of(k, source.first, head)), k.dtype, 1, k.strides[1]});
    out += key_layouts_[i].bytes();
  }
}

void PreparedSegment::pack_values(const Source& source, int64_t slot, int64_t head, AlignedBuffer& mixed) const {
  std::byte* out =
      data_ + static_cast<int64_t>(key_sources_.size()) * heads_ * keys_bytes_ + (slot * heads_ + head) * values_bytes_;
  const float* const values = mixes() ? mix_values(source, head, mixed) : nullptr;
  for (int64_t i = 0; i < pieces(); ++i) {
    const Strided& v = segment_.pieces[i].v;
    if (mixes()) {
      value_layouts_[i].pack(out, {values + first_keys_[i] * dim_, Dtype::kFloat32, dim_, 1});
    } else {
      value_layouts_[i].pack(out, {address(v, start_of(v, source.first, head)), v.dtype, v.strides[1], 1});
    }
    out += value_layouts_[i].bytes();
  }
}

// [keys][dim], v_mix times the concatenated values, rounded as values are. What no key uses is not read.
const float* PreparedSegment::mix_values(const Source& source, int64_t head, AlignedBuffer& memory) const {
  const int64_t count = keys() * dim_;
  memory.reserve(count * sizeof(float));
  auto* const mixed = reinterpret_cast<float*>(memory.data());
  std::fill(mixed, mixed + count, 0.0f);
  int64_t value = 0;
  for (const AttentionPiece& piece : segment_.pieces) {
    const Strided& v = piece.v;
    const int64_t start = start_of(v, source.first, head);
    for (int64_t own = 0; own < v.shape[1]; ++own, ++value) {
      for (int64_t key = 0; key < keys(); ++key) {
        const float factor = mix(source.second, key, value);
        if (factor == 0.0f) continue;
        for (int64_t c = 0; c < dim_; ++c) {
          mixed[key * dim_ + c] += factor * element(v, start + own * v.strides[1] + c);
        }
      }
    }
  }
  if (segment_.pieces[0].v.dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) mixed[i] = BFloat16::widen(BFloat16::narrow(mixed[i]));
  }
  return mixed;
}

float PreparedSegment::mix(int64_t row, int64_t key, int64_t value) const {
  const Strided& m = segment_.v_mix;
  const int64_t own = m.shape[0] == 1 ? 0 : row;
  return static_cast<const float*>(m.data)[own * m.strides[0] + key * m.strides[1] + value * m.strides[2]];
}

const std::byte* PreparedSegment::packed_keys(int64_t piece, int64_t row, int64_t head) const {
  const std::byte* at = data_ + (key_slots_[row] * heads_ + head) * keys_bytes_;
  for (int64_t i = 0; i < piece; ++i) at += key_layouts_[i].bytes();
  return at;
}

const std::byte* PreparedSegment::packed_values(int64_t piece, int64_t row, int64_t head) const {
  const std::byte* at = data_ + static_cast<int64_t>(key_sources_.size()) * heads_ * keys_bytes_ +
                        (value_slots_[row] * heads_ + head) * values_bytes_;
  for (int64_t i = 0; i < piece; ++i) at += value_layouts_[i].bytes();
  return at;
}

int64_t PreparedSegment::read_key(int64_t row, int64_t key) const {
  for (int64_t i = 0; i < pieces(); ++i) {
    if (key >= first_keys_[i] && key < first_keys_[i + 1]) return key - first_keys_[i] < length(i, row) ? key : -1;
  }
  return -1;
}

}  // namespace bridle
