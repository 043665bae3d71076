// What an instruction set contributes to attention: register tiles of several widths, and the softmax of a block.
#pragma once

#include <cstdint>

#include "bridle/attention.h"
#include "ops/gemm/variant.h"

namespace bridle {

// One query's scores of a block of keys, in place, and their exponentials.
struct SoftmaxArguments {
  float* scores;      // [count], raw products; scaled and biased afterwards
  const float* bias;  // [count] or absent, `bias_stride` apart
  int64_t bias_stride;
  float scale;
  int64_t count;
  float maximum;  // of what came before, -inf for nothing
  void* weights;  // [count] exp(score - new maximum) in the products' dtype
  bool keeps;     // whether the scores are read afterwards; else they may be left as they were
  bool reports;   // whether probabilities or logarithms are read off the sum, not only outputs divided by it
};

struct SoftmaxResult {
  float maximum;    // of everything so far, -inf where nothing is visible
  double sum;       // of the weights of this block
  double reported;  // of its exponentials, where somebody reads that: its rounding is in every probability
};

// Where the weights are the exponentials within rounding.
inline SoftmaxResult exact_softmax(float maximum, double sum) { return {maximum, sum, sum}; }

struct AttentionVariant {
  Dtype dtype;  // of the products
  int64_t rows;
  int64_t lanes;                           // outputs of a vector
  int64_t vectors;                         // of the widest panel
  int64_t depth;                           // elements of K that lie together in a panel
  void (*tiles[8])(const TileArguments&);  // by vectors - 1
  SoftmaxResult (*softmax)(const SoftmaxArguments&);
  // row[i] *= factor for i < count.
  void (*rescale)(float* row, float factor, int64_t count);
  // total[i] += row[i] * factor for i < count.
  void (*add_scaled)(float* total, const float* row, float factor, int64_t count);
  // out[i] of float32 and bfloat16 = row[i] * factor, or 0 for a factor of 0; where `accumulates`, plus what is there.
  void (*write_float32)(void* out, const float* row, float factor, bool accumulates, int64_t count);
  void (*write_bfloat16)(void* out, const float* row, float factor, bool accumulates, int64_t count);
  // weights[i] of the products' dtype from float32.
  void (*narrow)(void* weights, const float* values, int64_t count);
  // Elements of K that a tile takes at a time, a multiple of depth: panels are so deep, with zeros behind the last.
  int64_t step;
  // Queries of a task, a multiple of rows.
  int64_t block_queries = 48;
  // Around the tiles of a task, for a unit with a state of its own.
  void (*enter)() = [] {};
  void (*leave)() = [] {};
};

const AttentionVariant& scalar_attention_float32();
const AttentionVariant& avx2_attention_float32();
const AttentionVariant& avx512_attention_float32();
const AttentionVariant& avx512_attention_bfloat16();
const AttentionVariant& amx_attention_bfloat16();
const AttentionVariant& emulated_amx_attention_bfloat16();

}  // namespace bridle
