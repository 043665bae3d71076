// A few queries of one row: their segments one after another, each a running softmax over blocks of keys.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/aligned_buffer.h"
#include "ops/attention/prepared_segment.h"
#include "ops/rounding.h"

namespace bridle {

constexpr int64_t kMostQueries = 64;

// What all tasks of an attention share. masses: [segments][R][H][S], those before the shift, of segments with one.
struct AttentionPlan {
  const AttentionVariant& variant;
  std::vector<PreparedSegment> segments;
  std::vector<std::vector<float>> masses;
  int64_t rows, heads, queries, dim, padded_dim;
  const AttentionArguments* arguments = nullptr;
};

// Keys of a piece that are scored together, `first` of its keys on.
struct KeyBlock {
  int64_t piece, first_panel, panels, first, count;
};

// Memory of one task at a time, kept by its thread.
struct AttentionScratch {
  AlignedBuffer total, output, scores, weights, queries, row, given, sums, mixed;
  std::vector<KeyBlock> key_blocks;
};

class QueryBlock {
 public:
  QueryBlock(const AttentionPlan& plan, int64_t row, int64_t first, AttentionScratch& scratch);

  // The output of a head, and everything that its segments report but masses.
  void attend(int64_t head);

  // Adds the masses of a segment's shifted columns [S] over these queries.
  void add_masses(const PreparedSegment& segment, int64_t head, double* sums);

 private:
  void add_segment(size_t index, int64_t head);
  void attend_segments(int64_t head);
  void read_queries(const PreparedSegment& segment, int64_t head);
  const std::vector<KeyBlock>& key_blocks(const PreparedSegment& segment);
  void score(const PreparedSegment& segment, const KeyBlock& block, int64_t head, float* scores, int64_t stride) const;
  void weigh(const PreparedSegment& segment, const KeyBlock& block, int64_t head, float* scores, int64_t stride,
             bool fresh);
  void multiply(const PreparedSegment& segment, const KeyBlock& block, int64_t head, bool fresh);
  void multiply_panel(const PackedLayout& layout, const Panel& panel, const std::byte* values, const KeyBlock& block,
                      bool fresh);
  void copy_last(const PackedLayout& layout, const Panel& panel, const std::byte* values, int64_t first, int64_t rest,
                 std::byte* last) const;
  void stream(const PreparedSegment& segment, int64_t head);
  void read_map(const PreparedSegment& segment, int64_t i, float* map) const;
  void shift(size_t index, int64_t head);
  void shift_query(size_t index, int64_t head, int64_t i, float* weights) const;
  void report(const PreparedSegment& segment, int64_t head);
  void capture(const PreparedSegment& segment, const AttentionCapture& capture, int64_t place, int64_t head);
  float captured(const PreparedSegment& segment, int64_t i, const float* map, int64_t column) const;
  void finish(const PreparedSegment& segment);
  void write(int64_t head);

  float* kept_scores(int64_t i) const { return reinterpret_cast<float*>(scratch_.scores.data()) + i * kept_stride_; }
  float* map_row(const PreparedSegment& segment) const {
    scratch_.row.reserve(segment.keys() * sizeof(float));
    return reinterpret_cast<float*>(scratch_.row.data());
  }
  float* output(int64_t i) const { return reinterpret_cast<float*>(scratch_.output.data()) + i * plan_.padded_dim; }
  float* total(int64_t i) const { return reinterpret_cast<float*>(scratch_.total.data()) + i * plan_.padded_dim; }
  // Of a variant's products, which take `step` elements of K at a time.
  int64_t whole_steps(int64_t count) const { return round_up(count, plan_.variant.step); }
  int64_t queries() const { return plan_.variant.block_queries; }
  std::byte* weights(int64_t i) const { return scratch_.weights.data() + i * weights_stride_ * element_; }

  const AttentionPlan& plan_;
  const int64_t row_, first_, count_, element_, weights_stride_;
  AttentionScratch& scratch_;
  const void* query_rows_[kMostQueries];
  float maxima_[kMostQueries];
  double sums_[kMostQueries], reported_sums_[kMostQueries];  // of weights; of exponentials
  bool keeps_ = false;                                       // the scores of all keys, [queries][kept_stride_]
  int64_t kept_stride_ = 0;
};

}  // namespace bridle
