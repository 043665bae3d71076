// Segmented attention: out_r(n) = gate_r * sum over segments s of w_s,r(n) * A_s,r(n) M_s V, as
// kernels/bridle_kernels/attention/reference.py defines it. No map is ever in memory as a whole: a task has a few
// queries of one row and head, and sums up blocks of keys with a running maximum.
//
// Products read float32 or bfloat16 and sum in float32. A row's bits depend on what the row reads alone, and reporting
// does not change them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bridle/isa.h"
#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// k [rows, L, H, d], v [rows, L, H, d] with consecutive channels; one row serves every index. lengths: valid keys of
// each output row.
struct AttentionPiece {
  Strided k, v;
  std::vector<int32_t> lengths;
};

// A share of the columns' masses, laid out where a window says. columns [R, S], -1 for none; share [R, S];
// window [R, S or 1, N] float32, any strides; out [R, H, S] float32 or absent, masses before the shift.
struct AttentionMass {
  int64_t count = 0;
  std::vector<int32_t> columns;
  std::vector<float> share;
  Strided window, out;
};

// Columns of the map [C, S], -1 for none, or all of them where `columns` is empty, of output rows `rows` [C], times
// scale [C], added to out [C, H, N, S], or [C, N, S] for the mean of heads, float32, any strides.
struct AttentionCapture {
  std::vector<int32_t> rows, columns;
  std::vector<float> scale;
  Strided out;
};

// Row indices [R], -1 for no such row; v and mix rows likewise. weights: [R, N] float32 or absent, any strides.
// bias: [R, H, N, L] float32 or absent, stride 0 where it is broadcast. v_mix: [R, keys, values] float32 or absent.
// lse: [R, H, N] float32 or absent.
struct AttentionSegment {
  std::vector<AttentionPiece> pieces;
  std::vector<int32_t> q_rows, k_rows, v_rows;
  float weight = 1.0f;
  Strided weights, bias, v_mix;
  AttentionMass mass;
  std::vector<AttentionCapture> captures;
  Strided lse;
};

// q [Rq, N, H, d] with consecutive channels; out [R, N, H * d], consecutive, of q's dtype. gate: [R]. The result is
// added to `out` where `accumulate` says so, else it replaces it.
struct AttentionArguments {
  Strided q, out;
  std::vector<AttentionSegment> segments;
  std::vector<float> gate;
  float scale = 1.0f;
  bool causal = false;
  bool float32_scores = false;
  bool accumulate = false;
};

// An attention that is computed several times with the same tensors, whose contents change: neither `pack` nor `attend`
// allocates once every thread has done its share of one as large.
class PreparedAttention {
 public:
  // Sizes and indices are the caller's to check. Throws std::invalid_argument for dtypes that have no variant.
  PreparedAttention(AttentionArguments arguments, Isa isa);
  ~PreparedAttention();
  PreparedAttention(const PreparedAttention&) = delete;
  PreparedAttention& operator=(const PreparedAttention&) = delete;

  // What packed keys and values need.
  size_t packed_bytes() const;

  // Reads the keys and values; once more wherever they have changed. memory: `packed_bytes` from a cache line on, which
  // nobody else writes until `attend` has returned for the last time.
  void pack(std::byte* memory, ThreadPool& pool);

  // Overwrites, or adds to, the output and everything that is reported.
  void attend(ThreadPool& pool);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bridle
