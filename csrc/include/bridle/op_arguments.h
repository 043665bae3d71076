// Arguments of ops from tensors, checked by name. Tensors whose data is absent, as a plan's are, give arguments whose
// pointers are filled in later. All throw std::invalid_argument for what does not fit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bridle/conv2d.h"
#include "bridle/gemm.h"
#include "bridle/norm.h"
#include "bridle/strided.h"

namespace bridle {

// What a product takes beyond its left operand; nullptr = absent. Rows of `shift` may lie apart: they are columns of a
// table.
struct ProductTensors {
  const Strided* bias;
  const Strided* shift;
  const Strided* residual;
  const Strided* out;
};

// Everything but `left`. images * positions is the number of rows.
GemmArguments product_arguments(const PackedWeights& weights, int64_t images, int64_t positions,
                                const ProductTensors& tensors, const std::string& activation);

// The number of rows of x [m, K], the left operand of a linear layer.
int64_t linear_rows(const PackedWeights& weights, const Strided& x);

// sources: [R, h, w, C] each.
std::vector<ConvSource> conv_sources(const PackedWeights& weights, const std::vector<Strided>& sources);

// sources: one or two of [R, positions, C]. out: [R, positions, sum of their channels].
GroupNorm group_norm_arguments(const std::vector<Strided>& sources, const Strided& out, const Strided& weight,
                               const Strided& bias, int64_t groups, double eps, const std::string& activation);

// x, out: [m, C].
LayerNorm layer_norm_arguments(const Strided& x, const Strided& out, const Strided& weight, const Strided& bias,
                               double eps);

}  // namespace bridle
