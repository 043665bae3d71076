// Ops as nodes of a plan: the same checks as when they are called at once, and pointers that every frame resolves.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bridle/gemm.h"
#include "bridle/plan.h"
#include "bridle/strided.h"
#include "bridle/upsampled_conv2d.h"

namespace bridle {

// A tensor of a plan: where it will lie in every frame. layout.data is absent. offset: bytes from the buffer's first.
struct PlanTensor {
  int32_t buffer;
  int64_t offset;
  Strided layout;

  void* at(const Frame& frame) const { return frame.at(buffer) + offset; }
  Strided in(const Frame& frame) const {
    Strided found = layout;
    found.data = at(frame);
    return found;
  }
};

using OptionalTensor = std::optional<PlanTensor>;

inline void* at(const OptionalTensor& tensor, const Frame& frame) { return tensor ? tensor->at(frame) : nullptr; }

using Weights = std::shared_ptr<PackedWeights>;

void record_linear(Plan& plan, const Weights& weights, const PlanTensor& x, const PlanTensor& out,
                   const OptionalTensor& bias, const OptionalTensor& residual, const std::string& activation);

void record_conv2d(Plan& plan, const Weights& weights, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                   const std::vector<int64_t>& kernel, int64_t stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& upsample, const OptionalTensor& bias, const OptionalTensor& shift,
                   const OptionalTensor& residual, const std::string& activation);

// out: [R * 2 h * 2 w, N] of sources [R, h, w, C].
void record_upsampled_conv2d(Plan& plan, const PhaseWeights& phases, const std::vector<PlanTensor>& sources,
                             const PlanTensor& out, const OptionalTensor& bias, const OptionalTensor& shift,
                             const OptionalTensor& residual, const std::string& activation);

void record_group_norm(Plan& plan, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                       const PlanTensor& weight, const PlanTensor& bias, int64_t groups, double eps,
                       const std::string& activation);

void record_layer_norm(Plan& plan, const PlanTensor& x, const PlanTensor& out, const PlanTensor& weight,
                       const PlanTensor& bias, double eps);

// k, v: one or more [R, L, H, d] each, whose keys share a softmax. row_port: of the rows that the attention's maps come
// from.
void record_own_attention(Plan& plan, const PlanTensor& q, const std::vector<PlanTensor>& k,
                          const std::vector<PlanTensor>& v, const PlanTensor& out, float scale, bool causal,
                          bool float32_scores, int32_t row_port);

// Its segments are bound to the port that is returned.
int32_t record_bound_attention(Plan& plan, const PlanTensor& q, const PlanTensor& out, float scale,
                               bool float32_scores);

// x: [R, positions, C], is added to. Its terms are bound to the port that is returned.
int32_t record_residual_add(Plan& plan, const PlanTensor& x);

void record_average_pool(Plan& plan, const PlanTensor& x, const PlanTensor& out);

void record_area_pool(Plan& plan, const PlanTensor& x, const PlanTensor& out);

void record_copy(Plan& plan, const PlanTensor& x, const PlanTensor& out);

void record_pointwise(Plan& plan, const PlanTensor& x, const PlanTensor& out, double scale, double shift,
                      const std::string& activation);

void record_embedding(Plan& plan, const PlanTensor& ids, const PlanTensor& tokens, const PlanTensor& positions,
                      const PlanTensor& out);

void record_end_token(Plan& plan, const PlanTensor& x, const PlanTensor& ids, const PlanTensor& out,
                      std::optional<int64_t> end);

void record_time_embedding(Plan& plan, const PlanTensor& t, const PlanTensor& frequencies, const PlanTensor& out,
                           bool cosines_first);

}  // namespace bridle
