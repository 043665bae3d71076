#include "ops/attention/query_block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/element.h"

namespace bridle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Channels that are summed in registers: long sums round worse.
constexpr int64_t kDepth = 256;
// Tiles write whole panels.
constexpr int64_t kOverhang = 64;
// The widest panel, as deep as the matrix unit.
constexpr int64_t kLastBytes = 64 * 32 * 2;

float* floats(const AlignedBuffer& buffer) { return reinterpret_cast<float*>(buffer.data()); }

float* at(const Strided& tensor, int64_t a, int64_t b, int64_t c) {
  return static_cast<float*>(tensor.data) + a * tensor.strides[0] + b * tensor.strides[1] + c * tensor.strides[2];
}

// The share of a score in a softmax with that maximum and sum; 0 where nothing is visible.
float probability(float score, float maximum, double sum) {
  if (maximum == -kInfinity) return 0.0f;
  return static_cast<float>(std::exp(static_cast<double>(score) - maximum) / sum);
}

}  // namespace

QueryBlock::QueryBlock(const AttentionPlan& plan, int64_t row, int64_t first, AttentionScratch& scratch)
    : plan_(plan),
      row_(row),
      first_(first),
      count_(std::min(plan.variant.block_queries, plan.queries - first)),
      element_(element_bytes(plan.variant.dtype)),
      weights_stride_(kBlockKeys + kOverhang),
      scratch_(scratch) {
  scratch.total.reserve(queries() * plan.padded_dim * sizeof(float));
  scratch.output.reserve(queries() * plan.padded_dim * sizeof(float));
  scratch.weights.reserve(queries() * weights_stride_ * element_);
}

void QueryBlock::attend(int64_t head) {
  plan_.variant.enter();
  attend_segments(head);
  plan_.variant.leave();
  write(head);
}

void QueryBlock::attend_segments(int64_t head) {
  std::fill(total(0), total(queries()), 0.0f);
  for (size_t index = 0; index < plan_.segments.size(); ++index) {
    if (plan_.segments[index].present(row_)) add_segment(index, head);
  }
}

void QueryBlock::add_segment(size_t index, int64_t head) {
  const PreparedSegment& segment = plan_.segments[index];
  keeps_ = segment.source().mass.count > 0 || !segment.source().captures.empty();
  stream(segment, head);
  if (segment.source().mass.count > 0) shift(index, head);
  report(segment, head);
  finish(segment);
}

void QueryBlock::read_queries(const PreparedSegment& segment, int64_t head) {
  const Strided& q = plan_.arguments->q;
  const int64_t size = element_bytes(q.dtype), dim = plan_.dim;
  const auto* base = static_cast<const std::byte*>(q.data) +
                     (segment.source().q_rows[row_] * q.strides[0] + head * q.strides[2]) * size;
  const int64_t width = whole_steps(dim);
  const bool widens = q.dtype == Dtype::kBFloat16 && plan_.variant.dtype == Dtype::kFloat32;
  const bool copies = widens || width > dim;
  if (copies) scratch_.queries.reserve(queries() * width * element_);
  for (int64_t i = 0; i < queries(); ++i) {
    // Queries behind the last repeat it; their results are never read.
    const std::byte* from = base + (first_ + std::min(i, count_ - 1)) * q.strides[1] * size;
    query_rows_[i] = from;
    if (!copies) continue;
    std::byte* const copy = scratch_.queries.data() + i * width * element_;
    query_rows_[i] = copy;
    if (widens) {
      auto* const wide = reinterpret_cast<float*>(copy);
      for (int64_t c = 0; c < dim; ++c) wide[c] = BFloat16::widen(reinterpret_cast<const uint16_t*>(from)[c]);
    } else {
      std::memcpy(copy, from, dim * element_);
    }
    std::memset(copy + dim * element_, 0, (width - dim) * element_);
  }
}

const std::vector<KeyBlock>& QueryBlock::key_blocks(const PreparedSegment& segment) {
  std::vector<KeyBlock>& blocks = scratch_.key_blocks;
  blocks.clear();
  for (int64_t piece = 0; piece < segment.pieces(); ++piece) {
    int64_t length = segment.length(piece, row_);
    // No query of the block sees more.
    if (plan_.arguments->causal) length = std::min(length, first_ + count_);
    const std::vector<Panel>& panels = segment.key_layout(piece).panels();
    int64_t panel = 0, panel_count = static_cast<int64_t>(panels.size());
    while (panel < panel_count && panels[panel].first < length) {
      const int64_t start = panel, first = panels[panel].first;
      int64_t end = first;
      while (panel < panel_count && panels[panel].first < length) {
        const int64_t next = panels[panel].first + panels[panel].vectors * plan_.variant.lanes;
        if (next - first > kBlockKeys) break;
        end = next;
        ++panel;
      }
      blocks.push_back({piece, start, panel - start, first, std::min(end, length) - first});
    }
  }
  return blocks;
}

// Raw products of the queries and a block of keys.
void QueryBlock::score(const PreparedSegment& segment, const KeyBlock& block, int64_t head, float* scores,
                       int64_t stride) const {
  const PackedLayout& layout = segment.key_layout(block.piece);
  const std::byte* const keys = segment.packed_keys(block.piece, row_, head);
  const int64_t width = whole_steps(plan_.dim);
  for (int64_t p = block.first_panel; p < block.first_panel + block.panels; ++p) {
    const Panel& panel = layout.panels()[p];
    for (int64_t i = 0; i < count_; i += plan_.variant.rows) {
      float* const sums = scores + i * stride + panel.first - block.first;
      for (int64_t from = 0; from < width; from += kDepth) {
        plan_.variant.tiles[panel.vectors - 1]({query_rows_ + i, from, std::min(kDepth, width - from),
                                                keys + layout.offset(panel, from), sums, stride, from == 0});
      }
    }
  }
}

// From raw products to weights, with what came before rescaled to the new maximum.
void QueryBlock::weigh(const PreparedSegment& segment, const KeyBlock& block, int64_t head, float* scores,
                       int64_t stride, bool fresh) {
  const AttentionVariant& variant = plan_.variant;
  const Strided& bias = segment.source().bias;
  const int64_t first_key = segment.first_key(block.piece) + block.first;
  const bool reports = keeps_ || segment.source().lse;
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t visible =
        plan_.arguments->causal ? std::clamp<int64_t>(first_ + i + 1 - first_key, 0, block.count) : block.count;
    const float* row_bias = bias ? at(bias, row_, head, first_ + i) + first_key * bias.strides[3] : nullptr;
    const SoftmaxResult found =
        variant.softmax({scores + i * stride, row_bias, bias ? bias.strides[3] : 0, plan_.arguments->scale, visible,
                         maxima_[i], weights(i), keeps_, reports});
    // Weights are multiplied several at a time, so more than those of the block are read.
    std::memset(weights(i) + visible * element_, 0, (whole_steps(block.count) - visible) * element_);
    if (found.maximum != maxima_[i]) {
      const float factor = maxima_[i] == -kInfinity ? 0.0f : std::exp(maxima_[i] - found.maximum);
      sums_[i] *= factor;
      reported_sums_[i] *= factor;
      if (!fresh) variant.rescale(output(i), factor, plan_.dim);
      maxima_[i] = found.maximum;
    }
    sums_[i] += found.sum;
    reported_sums_[i] += found.reported;
  }
}

// Adds the weights' products with the values of a block to the outputs; those of a segment's first block are the
// outputs.
void QueryBlock::multiply(const PreparedSegment& segment, const KeyBlock& block, int64_t head, bool fresh) {
  const PackedLayout& layout = segment.value_layout(block.piece);
  const std::byte* const values = segment.packed_values(block.piece, row_, head);
  for (const Panel& panel : layout.panels()) multiply_panel(layout, panel, values, block, fresh);
}

void QueryBlock::multiply_panel(const PackedLayout& layout, const Panel& panel, const std::byte* values,
                                const KeyBlock& block, bool fresh) {
  const AttentionVariant& variant = plan_.variant;
  const int64_t whole = block.count / variant.step * variant.step, rest = block.count - whole;
  alignas(64) std::byte last[kLastBytes];
  if (rest > 0) copy_last(layout, panel, values, block.first + whole, rest, last);
  for (int64_t i = 0; i < count_; i += variant.rows) {
    const void* rows[kMostTileRows];
    for (int64_t j = 0; j < variant.rows; ++j) rows[j] = weights(i + j);
    float* const sums = output(i) + panel.first;
    const auto tile = variant.tiles[panel.vectors - 1];
    if (whole > 0) tile({rows, 0, whole, values + layout.offset(panel, block.first), sums, plan_.padded_dim, fresh});
    if (rest > 0) tile({rows, whole, variant.step, last, sums, plan_.padded_dim, fresh && whole == 0});
  }
}

// The last step of a row's keys: what lies behind them belongs to no key of the row and may hold anything.
void QueryBlock::copy_last(const PackedLayout& layout, const Panel& panel, const std::byte* values, int64_t first,
                           int64_t rest, std::byte* last) const {
  const AttentionVariant& variant = plan_.variant;
  const int64_t wide = panel.vectors * variant.lanes, depth = variant.depth;
  const int64_t groups = divide_up(rest, depth), group_bytes = wide * depth * element_;
  std::memcpy(last, values + layout.offset(panel, first), groups * group_bytes);
  std::memset(last + groups * group_bytes, 0, (variant.step / depth - groups) * group_bytes);
  if (rest % depth == 0) return;
  std::byte* const half = last + (groups - 1) * group_bytes + rest % depth * element_;
  for (int64_t j = 0; j < wide; ++j) std::memset(half + j * depth * element_, 0, element_);
}

// The softmax of all keys times the values, not yet divided by the sums.
void QueryBlock::stream(const PreparedSegment& segment, int64_t head) {
  read_queries(segment, head);
  std::fill(maxima_, maxima_ + queries(), -kInfinity);
  std::fill(sums_, sums_ + queries(), 0.0);
  std::fill(reported_sums_, reported_sums_ + queries(), 0.0);
  kept_stride_ = keeps_ ? segment.keys() + kOverhang : kBlockKeys + kOverhang;
  scratch_.scores.reserve((queries() * kept_stride_ + kOverhang) * sizeof(float));
  float* const scores = floats(scratch_.scores);
  bool fresh = true;
  for (const KeyBlock& block : key_blocks(segment)) {
    float* const own = keeps_ ? scores + segment.first_key(block.piece) + block.first : scores;
    score(segment, block, head, own, kept_stride_);
    weigh(segment, block, head, own, kept_stride_, fresh);
    multiply(segment, block, head, fresh);
    fresh = false;
  }
}

// The map of a query [keys] from its kept scores, 0 for keys that the row does not read.
void QueryBlock::read_map(const PreparedSegment& segment, int64_t i, float* map) const {
  const float* const scores = kept_scores(i);
  std::fill(map, map + segment.keys(), 0.0f);
  for (int64_t piece = 0; piece < segment.pieces(); ++piece) {
    const int64_t first = segment.first_key(piece), end = first + segment.length(piece, row_);
    for (int64_t key = first; key < end; ++key) map[key] = probability(scores[key], maxima_[i], reported_sums_[i]);
  }
}

// Replaces the kept scores by the shifted map, and the outputs by its product with the values.
void QueryBlock::shift(size_t index, int64_t head) {
  const PreparedSegment& segment = plan_.segments[index];
  for (int64_t i = 0; i < count_; ++i) {
    read_map(segment, i, map_row(segment));
    shift_query(index, head, i, map_row(segment));
    std::copy(map_row(segment), map_row(segment) + segment.keys(), kept_scores(i));
  }
  bool fresh = true;
  for (const KeyBlock& block : key_blocks(segment)) {
    const int64_t first = segment.first_key(block.piece) + block.first;
    for (int64_t i = 0; i < count_; ++i) {
      plan_.variant.narrow(weights(i), kept_scores(i) + first, block.count);
      std::memset(weights(i) + block.count * element_, 0, (whole_steps(block.count) - block.count) * element_);
    }
    multiply(segment, block, head, fresh);
    fresh = false;
  }
}

// A'[k] = A[k] * (1 - the shares of k) + window * share * mass, for the columns k of the shift.
void QueryBlock::shift_query(size_t index, int64_t head, int64_t i, float* map) const {
  const PreparedSegment& segment = plan_.segments[index];
  const AttentionMass& mass = segment.source().mass;
  const float* const masses = plan_.masses[index].data() + (row_ * plan_.heads + head) * mass.count;
  const auto each = [&](const auto& change) {
    for (int64_t s = 0; s < mass.count; ++s) {
      const int64_t key = segment.read_key(row_, mass.columns[row_ * mass.count + s]);
      if (key >= 0) change(s, key, mass.share[row_ * mass.count + s]);
    }
  };
  scratch_.given.reserve(mass.count * sizeof(float));
  float* const given = floats(scratch_.given);
  each([&](int64_t s, int64_t key, float share) { given[s] = map[key] * share; });
  each([&](int64_t s, int64_t key, float share) {
    const int64_t window = mass.window.shape[1] == 1 ? 0 : s;
    map[key] += *at(mass.window, row_, window, first_ + i) * share * masses[s] - given[s];
  });
}

void QueryBlock::add_masses(const PreparedSegment& segment, int64_t head, double* sums) {
  const AttentionMass& mass = segment.source().mass;
  keeps_ = true;
  plan_.variant.enter();
  stream(segment, head);
  plan_.variant.leave();
  for (int64_t s = 0; s < mass.count; ++s) {
    const int64_t key = segment.read_key(row_, mass.columns[row_ * mass.count + s]);
    for (int64_t i = 0; key >= 0 && i < count_; ++i) {
      sums[s] += probability(kept_scores(i)[key], maxima_[i], reported_sums_[i]);
    }
  }
}

void QueryBlock::report(const PreparedSegment& segment, int64_t head) {
  const AttentionSegment& source = segment.source();
  for (int64_t i = 0; source.lse && i < count_; ++i) {
    *at(source.lse, row_, head, first_ + i) = static_cast<float>(maxima_[i] + std::log(reported_sums_[i]));
  }
  for (const AttentionCapture& wanted : source.captures) {
    for (size_t place = 0; place < wanted.rows.size(); ++place) {
      if (wanted.rows[place] == row_) capture(segment, wanted, static_cast<int64_t>(place), head);
    }
  }
}

void QueryBlock::capture(const PreparedSegment& segment, const AttentionCapture& wanted, int64_t place, int64_t head) {
  const int64_t columns = wanted.out.shape.back();
  const bool per_head = wanted.out.shape.size() == 4, shifted = segment.source().mass.count > 0;
  const bool whole = !shifted && (wanted.columns.empty() || segment.mixes());
  const float scale = wanted.scale[place] / static_cast<float>(per_head ? 1 : plan_.heads);
  const std::vector<int64_t>& strides = wanted.out.strides;
  float* const out = static_cast<float*>(wanted.out.data) + place * strides[0] + (per_head ? head * strides[1] : 0);
  for (int64_t i = 0; i < count_; ++i) {
    if (whole) read_map(segment, i, map_row(segment));
    // Where neither, single columns are read off the scores.
    const float* const map = shifted ? kept_scores(i) : (whole ? map_row(segment) : nullptr);
    float* const line = out + (first_ + i) * strides[per_head ? 2 : 1];
    for (int64_t s = 0; s < columns; ++s) {
      const int64_t column = wanted.columns.empty() ? s : wanted.columns[place * columns + s];
      if (column >= 0) line[s * strides.back()] += scale * captured(segment, i, map, column);
    }
  }
}

// A column of the map that multiplies V: a key's, or a value's where V is mixed. map: [keys], or absent.
float QueryBlock::captured(const PreparedSegment& segment, int64_t i, const float* map, int64_t column) const {
  if (segment.mixes()) {
    float sum = 0.0f;
    for (int64_t key = 0; key < segment.keys(); ++key) sum += map[key] * segment.mix(row_, key, column);
    return sum;
  }
  if (segment.read_key(row_, column) < 0) return 0.0f;
  return map != nullptr ? map[column] : probability(kept_scores(i)[column], maxima_[i], reported_sums_[i]);
}

// Adds the segment's output, divided by the sums of the softmax and times its weight.
void QueryBlock::finish(const PreparedSegment& segment) {
  const AttentionSegment& source = segment.source();
  const bool divided = source.mass.count > 0;
  for (int64_t i = 0; i < count_; ++i) {
    float weight = source.weight;
    if (source.weights) {
      const Strided& w = source.weights;
      weight *= static_cast<const float*>(w.data)[row_ * w.strides[0] + (first_ + i) * w.strides[1]];
    }
    if (weight == 0.0f || maxima_[i] == -kInfinity) continue;
    plan_.variant.add_scaled(total(i), output(i), divided ? weight : static_cast<float>(weight / sums_[i]), plan_.dim);
  }
}

void QueryBlock::write(int64_t head) {
  const AttentionArguments& a = *plan_.arguments;
  const auto write_row = a.out.dtype == Dtype::kFloat32 ? plan_.variant.write_float32 : plan_.variant.write_bfloat16;
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t place = ((row_ * plan_.queries + first_ + i) * plan_.heads + head) * plan_.dim;
    write_row(static_cast<std::byte*>(a.out.data) + place * element_bytes(a.out.dtype), total(i), a.gate[row_],
              a.accumulate, plan_.dim);
  }
}

}  // namespace bridle
