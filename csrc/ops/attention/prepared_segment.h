// A segment with its keys and values packed: what the tasks of an attention read.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bridle/aligned_buffer.h"
#include "bridle/attention.h"
#include "ops/attention/packed_operand.h"

namespace bridle {

class PreparedSegment {
 public:
  PreparedSegment(const AttentionSegment& segment, int64_t heads, int64_t dim, const AttentionVariant& variant);

  // Bytes that the packed operands need; `place` says where they are.
  int64_t bytes() const { return bytes_; }
  void place(std::byte* data) { data_ = data; }

  // Packing in independent tasks. mixed: memory of the task's thread for values that are mixed.
  int64_t pack_tasks() const { return static_cast<int64_t>(key_sources_.size() + value_sources_.size()) * heads_; }
  void pack(int64_t task, AlignedBuffer& mixed) const;

  const AttentionSegment& source() const { return segment_; }
  int64_t keys() const { return first_keys_.back(); }
  int64_t pieces() const { return static_cast<int64_t>(segment_.pieces.size()); }
  int64_t first_key(int64_t piece) const { return first_keys_[piece]; }

  // Whether an output row has the segment. Without reports a weight of 0 is as good as none.
  bool present(int64_t row) const;
  bool reports() const { return segment_.mass.count > 0 || !segment_.captures.empty() || segment_.lse; }

  int64_t length(int64_t piece, int64_t row) const { return segment_.pieces[piece].lengths[row]; }
  const PackedLayout& key_layout(int64_t piece) const { return key_layouts_[piece]; }
  const PackedLayout& value_layout(int64_t piece) const { return value_layouts_[piece]; }
  const std::byte* packed_keys(int64_t piece, int64_t row, int64_t head) const;
  const std::byte* packed_values(int64_t piece, int64_t row, int64_t head) const;

  // The key of the concatenation, or -1 if it is none or the row does not read it.
  int64_t read_key(int64_t row, int64_t key) const;
  // Factor of value `value` in the pre-mixed value of `key`.
  float mix(int64_t row, int64_t key, int64_t value) const;
  bool mixes() const { return static_cast<bool>(segment_.v_mix); }
  int64_t columns() const { return mixes() ? segment_.v_mix.shape[2] : keys(); }

 private:
  using Source = std::pair<int32_t, int32_t>;  // row of K or V, and of v_mix

  Source value_source(int64_t row) const;
  void pack_keys(const Source& source, int64_t slot, int64_t head) const;
  void pack_values(const Source& source, int64_t slot, int64_t head, AlignedBuffer& mixed) const;
  const float* mix_values(const Source& source, int64_t head, AlignedBuffer& memory) const;

  const AttentionSegment& segment_;
  int64_t heads_, dim_;
  std::vector<int64_t> first_keys_;  // of every piece, then the number of keys
  std::vector<PackedLayout> key_layouts_, value_layouts_;
  std::vector<int64_t> key_slots_, value_slots_;  // of each output row: which of the packed operands it reads
  std::vector<Source> key_sources_, value_sources_;
  int64_t keys_bytes_ = 0, values_bytes_ = 0, bytes_ = 0;  // of one row and head, and of everything
  std::byte* data_ = nullptr;
};

}  // namespace bridle
