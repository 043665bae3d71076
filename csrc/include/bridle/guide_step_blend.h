// Guidance, solver step and blend of known regions in one pass over the latents. Per sample p:
//   m  = sum over its terms of coefficient * weight * eps[row], each at its window
//   x' = c0 x + c1 m + c2 z + sum_k c_{3+k} history_k          (a coefficient of 0 skips its term)
//   x' = mask x' + (1 - mask) (k0 known + k1 known_noise)       where has_known[p]
// Float32 arithmetic in this order, without FMA: every variant gives the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/isa.h"
#include "bridle/strided.h"

namespace bridle {

struct GuideStepBlend {
  Strided eps;                            // [R, C, h, w], any dtype; all others are float32
  std::vector<int32_t> term_start;        // [P + 1]
  std::vector<int32_t> term_row;          // [T]
  std::vector<float> term_coefficient;    // [T]
  std::vector<int32_t> term_weight;       // [T], -1 = none
  std::vector<int32_t> term_top;          // [T]
  std::vector<int32_t> term_left;         // [T], columns wrap modulo W
  Strided weights;                        // [M, h, w] or absent
  Strided latents;                        // [P, C, H, W]
  Strided history;                        // [P, K, C, H, W] or absent
  std::vector<float> coefficients;        // [P, 3 + K]
  Strided noise;                          // [P, C, H, W] or absent
  Strided known;                          // [P, C, H, W] or absent, with the four below
  Strided known_noise;                    // [P, C, H, W]
  std::vector<float> known_coefficients;  // [P, 2]
  Strided mask;                           // [P, 1, H, W]
  std::vector<int32_t> has_known;         // [P]
  Strided out;                            // [P, C, H, W], written
  Strided model_output;                   // [P, C, H, W], written
};

// Throws std::invalid_argument naming the argument whose shape or index does not fit.
void guide_step_blend(const GuideStepBlend& arguments, Isa isa);

}  // namespace bridle
