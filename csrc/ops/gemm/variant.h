// What an instruction set contributes to the matrix product: one register tile over a piece of K, and the epilogue.
#pragma once

#include <cstdint>

#include "bridle/gemm.h"

namespace bridle {

// No tile takes more elements of K at a time, and none has more rows.
constexpr int64_t kMostTileDepth = 320;
constexpr int64_t kMostTileRows = 32;
// No task has more rows.
constexpr int64_t kMostBlockRows = 128;
// The panels of a task are no wider together.
constexpr int64_t kMostTaskWidth = 64;

// `rows` left operands, each from the same element on, times a panel: accumulators [rows][panel width] float32, their
// rows `stride` apart.
struct TileArguments {
  const void* const* rows;  // [variant.rows]
  int64_t first;            // element
  int64_t count;            // elements
  const void* panel;        // [count][panel width], or in bfloat16 [count / 2][panel width][2]
  float* sums;
  int64_t stride;
  bool fresh;  // sums start at 0, else at what is there
};

struct EpilogueArguments {
  const float* sums;       // [count]
  const float* gate_sums;  // absent but for gated weights
  const float* bias;       // at the panel's first output, or absent, as the three below
  const float* gate_bias;
  const float* shift;
  const void* residual;
  void* out;
  int64_t count;  // outputs
  Activation activation;
};

struct GemmVariant {
  Isa isa;
  Dtype dtype;
  int64_t rows;
  int64_t panel_width;
  void (*tile)(const TileArguments&);
  void (*epilogue)(const EpilogueArguments&);
  // Rows of a task: what of the left operand and of the sums a task keeps in L2.
  int64_t block_rows = 96;
  // Elements of K that a tile takes: few enough that a block of the left operand and the panel stay in L2, and that the
  // rounding of long sums stays small.
  int64_t block_depth = kMostTileDepth;
  // Neighbouring panels of a task: where registers make panels narrow, finding rows and finishing them is shared.
  int64_t task_panels = 1;
  // Around the tiles of a task, for a unit with a state of its own.
  void (*enter)() = [] {};
  void (*leave)() = [] {};
};

const GemmVariant& scalar_gemm_float32();
const GemmVariant& scalar_gemm_bfloat16();
const GemmVariant& avx2_gemm_float32();
const GemmVariant& avx512_gemm_float32();
const GemmVariant& avx512_gemm_bfloat16();
const GemmVariant& amx_gemm_bfloat16();
const GemmVariant& emulated_amx_gemm_bfloat16();

// Throws std::invalid_argument if there is none.
const GemmVariant& gemm_variant(Dtype dtype, Isa isa);

}  // namespace bridle
