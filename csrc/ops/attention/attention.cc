#include "bridle/attention.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "ops/attention/query_block.h"

namespace bridle {
namespace {

const AttentionVariant& choose(const AttentionArguments& a, Isa isa) {
  const Dtype dtype = a.q.dtype;
  if (dtype != Dtype::kFloat32 && dtype != Dtype::kBFloat16) {
    throw std::invalid_argument("attention: q wants float32 or bfloat16");
  }
  // Pairs of channels are multiplied together.
  const bool bfloat16 = dtype == Dtype::kBFloat16 && a.q.shape[3] % 2 == 0 && !a.float32_scores;
#if defined(__x86_64__)
  if (bfloat16 && contains(isa, Isa::kAmxBf16)) return amx_attention_bfloat16();
  if (bfloat16 && contains(isa, Isa::kAvx512Bf16)) return avx512_attention_bfloat16();
  if (contains(isa, Isa::kAvx512)) return avx512_attention_float32();
  if (contains(isa, Isa::kAvx2)) return avx2_attention_float32();
#endif
  if (bfloat16 && isa == Isa::kEmulatedAmx) return emulated_amx_attention_bfloat16();
  return scalar_attention_float32();
}

void fill(const Strided& tensor, float value) {
  if (!tensor) return;
  for (int64_t a = 0; a < tensor.shape[0]; ++a) {
    for (int64_t b = 0; b < tensor.shape[1]; ++b) {
      for (int64_t c = 0; c < tensor.shape[2]; ++c) {
        static_cast<float*>(tensor.data)[a * tensor.strides[0] + b * tensor.strides[1] + c * tensor.strides[2]] = value;
      }
    }
  }
}

AttentionScratch& own_scratch() {
  thread_local AttentionScratch scratch;
  return scratch;
}

// The masses of a segment's columns, row by row and head by head: the sums are in the order of the queries.
void measure_masses(AttentionPlan& plan, size_t index, ThreadPool& pool) {
  const PreparedSegment& segment = plan.segments[index];
  const AttentionMass& mass = segment.source().mass;
  std::fill(plan.masses[index].begin(), plan.masses[index].end(), 0.0f);
  pool.run(plan.rows * plan.heads, [&](int64_t task) {
    const int64_t row = task / plan.heads, head = task % plan.heads;
    if (!segment.present(row)) return;
    AttentionScratch& scratch = own_scratch();
    scratch.sums.reserve(mass.count * sizeof(double));
    auto* const sums = reinterpret_cast<double*>(scratch.sums.data());
    std::fill(sums, sums + mass.count, 0.0);
    for (int64_t first = 0; first < plan.queries; first += plan.variant.block_queries) {
      QueryBlock(plan, row, first, scratch).add_masses(segment, head, sums);
    }
    for (int64_t s = 0; s < mass.count; ++s) {
      plan.masses[index][task * mass.count + s] = static_cast<float>(sums[s]);
      if (!mass.out) continue;
      static_cast<float*>(
          mass.out.data)[row * mass.out.strides[0] + head * mass.out.strides[1] + s * mass.out.strides[2]] =
          static_cast<float>(sums[s]);
    }
  });
}

// Heads whose maps are averaged into one buffer take turns.
bool heads_take_turns(const AttentionArguments& arguments) {
  for (const AttentionSegment& segment : arguments.segments) {
    for (const AttentionCapture& capture : segment.captures) {
      if (capture.out.shape.size() == 3) return true;
    }
  }
  return false;
}

}  // namespace

struct PreparedAttention::State {
  AttentionArguments arguments;
  AttentionPlan plan;
  std::vector<int64_t> pack_ends;  // of every segment's tasks
  size_t packed_bytes;
  bool takes_turns;
};

PreparedAttention::PreparedAttention(AttentionArguments arguments, Isa isa) {
  const AttentionVariant& variant = choose(arguments, isa);
  const std::vector<int64_t> shape = arguments.q.shape;
  const int64_t rows = static_cast<int64_t>(arguments.gate.size()), lanes = variant.lanes;
  const AttentionPlan plan{variant, {}, {}, rows, shape[2], shape[1], shape[3], round_up(shape[3], lanes)};
  state_ = std::make_unique<State>(State{std::move(arguments), plan, {}, 0, false});
  AttentionPlan& made = state_->plan;
  made.arguments = &state_->arguments;
  int64_t tasks = 0;
  for (const AttentionSegment& segment : made.arguments->segments) {
    made.segments.emplace_back(segment, made.heads, made.dim, variant);
    state_->packed_bytes += static_cast<size_t>(made.segments.back().bytes());
    state_->pack_ends.push_back(tasks += made.segments.back().pack_tasks());
    made.masses.emplace_back(made.rows * made.heads * segment.mass.count);
  }
  state_->takes_turns = heads_take_turns(*made.arguments);
}

PreparedAttention::~PreparedAttention() = default;

size_t PreparedAttention::packed_bytes() const { return state_->packed_bytes; }

void PreparedAttention::pack(std::byte* memory, ThreadPool& pool) {
  for (PreparedSegment& segment : state_->plan.segments) {
    segment.place(memory);
    memory += segment.bytes();
  }
  const std::vector<int64_t>& ends = state_->pack_ends;
  pool.run(ends.empty() ? 0 : ends.back(), [&](int64_t task) {
    const size_t index = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
    state_->plan.segments[index].pack(index == 0 ? task : task - ends[index - 1], own_scratch().mixed);
  });
}

void PreparedAttention::attend(ThreadPool& pool) {
  AttentionPlan& plan = state_->plan;
  for (size_t index = 0; index < plan.segments.size(); ++index) {
    const AttentionSegment& segment = plan.arguments->segments[index];
    fill(segment.lse, -std::numeric_limits<float>::infinity());
    fill(segment.mass.out, 0.0f);
    if (segment.mass.count > 0) measure_masses(plan, index, pool);
  }
  const int64_t own = plan.variant.block_queries, blocks = divide_up(plan.queries, own);
  const int64_t turns = state_->takes_turns ? plan.heads : 1, groups = plan.heads / turns;
  pool.run(plan.rows * groups * blocks, [&](int64_t task) {
    const int64_t block = task % blocks, group = task / blocks % groups, row = task / blocks / groups;
    QueryBlock queries(plan, row, block * own, own_scratch());
    for (int64_t head = group * turns; head < (group + 1) * turns; ++head) queries.attend(head);
  });
}

}  // namespace bridle
