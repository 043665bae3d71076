#include "bridle/record.h"

#include <numeric>
#include <stdexcept>
#include <utility>

#include "bridle/checks.h"
#include "bridle/op_arguments.h"

namespace bridle {
namespace {

using Buffers = std::vector<int32_t>;

void add_to(Buffers& buffers, const OptionalTensor& tensor) {
  if (tensor) buffers.push_back(tensor->buffer);
}

const Strided* layout(const OptionalTensor& tensor) { return tensor ? &tensor->layout : nullptr; }

std::vector<Strided> layouts(const std::vector<PlanTensor>& tensors) {
  std::vector<Strided> found;
  for (const PlanTensor& tensor : tensors) found.push_back(tensor.layout);
  return found;
}

// What a product reads and writes beyond its left operand.
struct Epilogue {
  OptionalTensor bias, shift, residual;
  PlanTensor out;

  ProductTensors tensors() const { return {layout(bias), layout(shift), layout(residual), &out.layout}; }

  Buffers reads() const {
    Buffers found;
    for (const OptionalTensor* tensor : {&bias, &shift, &residual}) add_to(found, *tensor);
    return found;
  }

  GemmArguments in(const Frame& frame, GemmArguments a) const {
    a.bias = static_cast<const float*>(at(bias, frame));
    a.shift = static_cast<const float*>(at(shift, frame));
    a.residual = at(residual, frame);
    a.out = out.at(frame);
    return a;
  }
};

template <class Rows>
Plan::Step product(const Weights& weights, GemmArguments arguments, Rows rows) {
  return [weights, arguments, rows = std::move(rows)](ThreadPool& pool) {
    GemmArguments a = arguments;
    a.left = &rows;
    gemm(*weights, a, pool);
  };
}

// Sources where they lie in a frame.
std::vector<ConvSource> located(std::vector<ConvSource> sources, const std::vector<PlanTensor>& tensors,
                                const Frame& frame) {
  for (size_t i = 0; i < sources.size(); ++i) sources[i].data = tensors[i].at(frame);
  return sources;
}

Plan::Step convolution(const Weights& weights, const GemmArguments& arguments, std::vector<ConvSource> sources,
                       const ConvGeometry& geometry) {
  return product(weights, arguments,
                 ConvRows(std::move(sources), geometry, weights->zeros(), element_bytes(weights->dtype())));
}

AttentionArguments attention_arguments(const PlanTensor& q, const PlanTensor& out, float scale, bool causal,
                                       bool float32_scores) {
  const std::vector<int64_t>& shape = q.layout.shape;
  if (shape.size() != 4 || q.layout.strides[3] != 1) {
    throw std::invalid_argument("q wants [R, N, H, d] with consecutive channels");
  }
  check_compact("out", out.layout, q.layout.dtype, {shape[0], shape[1], shape[2] * shape[3]});
  AttentionArguments a;
  a.gate.assign(shape[0], 1.0f);
  a.scale = scale;
  a.causal = causal;
  a.float32_scores = float32_scores;
  return a;
}

// A segment of an attention's own keys and values: each row reads itself.
AttentionSegment own_segment(int64_t rows, const std::vector<PlanTensor>& k, const std::vector<PlanTensor>& v,
                             const Frame& frame) {
  AttentionSegment segment;
  segment.q_rows.resize(rows);
  std::iota(segment.q_rows.begin(), segment.q_rows.end(), 0);
  segment.k_rows = segment.v_rows = segment.q_rows;
  for (size_t i = 0; i < k.size(); ++i) {
    const std::vector<int32_t> lengths(rows, static_cast<int32_t>(k[i].layout.shape[1]));
    segment.pieces.push_back({k[i].in(frame), v[i].in(frame), lengths});
  }
  return segment;
}

// keys: how many the piece has.
void check_piece(const PlanTensor& part, const PlanTensor& q, int64_t keys) {
  const std::vector<int64_t>&shape = part.layout.shape, &wanted = q.layout.shape;
  if (shape != std::vector<int64_t>{wanted[0], keys, wanted[2], wanted[3]} || part.layout.strides[3] != 1 ||
      part.layout.dtype != q.layout.dtype) {
    throw std::invalid_argument("k and v want [R, L, H, d] with consecutive channels");
  }
}

}  // namespace

void record_linear(Plan& plan, const Weights& weights, const PlanTensor& x, const PlanTensor& out,
                   const OptionalTensor& bias, const OptionalTensor& residual, const std::string& activation) {
  const int64_t m = linear_rows(*weights, x.layout), row_bytes = weights->widths()[0] * element_bytes(weights->dtype());
  const Epilogue epilogue{bias, {}, residual, out};
  const GemmArguments arguments = product_arguments(*weights, 1, m, epilogue.tensors(), activation);
  Buffers reads = epilogue.reads();
  reads.push_back(x.buffer);
  plan.add("linear", reads, {out.buffer}, [=](Frame& frame) {
    return product(weights, epilogue.in(frame, arguments), MatrixRows(x.at(frame), row_bytes));
  });
}

void record_conv2d(Plan& plan, const Weights& weights, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                   const std::vector<int64_t>& kernel, int64_t stride, const std::vector<int64_t>& padding,
                   const std::vector<int64_t>& upsample, const OptionalTensor& bias, const OptionalTensor& shift,
                   const OptionalTensor& residual, const std::string& activation) {
  const std::vector<ConvSource> inputs = conv_sources(*weights, layouts(sources));
  const ConvGeometry g = conv_geometry(sources.front().layout.shape, kernel, stride, padding, upsample);
  check_spans(*weights, inputs, g);
  const Epilogue epilogue{bias, shift, residual, out};
  const GemmArguments arguments =
      product_arguments(*weights, g.rows, g.out_height * g.out_width, epilogue.tensors(), activation);
  Buffers reads = epilogue.reads();
  for (const PlanTensor& source : sources) reads.push_back(source.buffer);
  plan.add("conv2d", reads, {out.buffer}, [=](Frame& frame) {
    return convolution(weights, epilogue.in(frame, arguments), located(inputs, sources, frame), g);
  });
}

void record_upsampled_conv2d(Plan& plan, const PhaseWeights& phases, const std::vector<PlanTensor>& sources,
                             const PlanTensor& out, const OptionalTensor& bias, const OptionalTensor& shift,
                             const OptionalTensor& residual, const std::string& activation) {
  const std::vector<ConvSource> inputs = phase_sources(phases, layouts(sources));
  const std::vector<int64_t> shape = sources.front().layout.shape;
  const Epilogue epilogue{bias, shift, residual, out};
  const GemmArguments whole = whole_arguments(phases, shape, epilogue.tensors(), activation);
  Buffers reads = epilogue.reads();
  for (const PlanTensor& source : sources) reads.push_back(source.buffer);
  plan.add("upsampled_conv2d", reads, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    std::vector<Plan::Step> steps;
    for (int64_t i = 0; i < kPhases; ++i) {
      const ConvGeometry g = phase_geometry(shape, i);
      steps.push_back(
          convolution(phases[i], phase_arguments(epilogue.in(frame, whole), g, i), located(inputs, sources, frame), g));
    }
    return [steps = std::move(steps)](ThreadPool& pool) {
      for (const Plan::Step& step : steps) step(pool);
    };
  });
}

void record_group_norm(Plan& plan, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                       const PlanTensor& weight, const PlanTensor& bias, int64_t groups, double eps,
                       const std::string& activation) {
  const GroupNorm a =
      group_norm_arguments(layouts(sources), out.layout, weight.layout, bias.layout, groups, eps, activation);
  Buffers reads = {weight.buffer, bias.buffer};
  for (const PlanTensor& source : sources) reads.push_back(source.buffer);
  const int32_t workspace = plan.add_buffer(group_norm_workspace(a));
  const Isa isa = active_isa();
  plan.add("group_norm", reads, {out.buffer, workspace}, [=](Frame& frame) -> Plan::Step {
    GroupNorm n = a;
    for (size_t i = 0; i < sources.size(); ++i) n.sources[i] = sources[i].at(frame);
    n.weight = static_cast<const float*>(weight.at(frame));
    n.bias = static_cast<const float*>(bias.at(frame));
    n.out = out.at(frame);
    return [n, isa, space = frame.at(workspace)](ThreadPool& pool) { group_norm(n, space, isa, pool); };
  });
}

void record_layer_norm(Plan& plan, const PlanTensor& x, const PlanTensor& out, const PlanTensor& weight,
                       const PlanTensor& bias, double eps) {
  const LayerNorm a = layer_norm_arguments(x.layout, out.layout, weight.layout, bias.layout, eps);
  const Isa isa = active_isa();
  plan.add("layer_norm", {x.buffer, weight.buffer, bias.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    LayerNorm n = a;
    n.x = x.at(frame);
    n.weight = static_cast<const float*>(weight.at(frame));
    n.bias = static_cast<const float*>(bias.at(frame));
    n.out = out.at(frame);
    return [n, isa](ThreadPool& pool) { layer_norm(n, isa, pool); };
  });
}

void record_own_attention(Plan& plan, const PlanTensor& q, const std::vector<PlanTensor>& k,
                          const std::vector<PlanTensor>& v, const PlanTensor& out, float scale, bool causal,
                          bool float32_scores, int32_t row_port) {
  const AttentionArguments arguments = attention_arguments(q, out, scale, causal, float32_scores);
  if (k.empty() || k.size() != v.size()) throw std::invalid_argument("k and v want as many pieces, one or more");
  Buffers reads = {q.buffer};
  for (size_t i = 0; i < k.size(); ++i) {
    const int64_t keys = k[i].layout.shape.size() == 4 ? k[i].layout.shape[1] : 0;
    check_piece(k[i], q, keys);
    check_piece(v[i], q, keys);
    reads.insert(reads.end(), {k[i].buffer, v[i].buffer});
  }
  const Isa isa = active_isa();
  plan.add("self_attention", reads, {out.buffer}, [=](Frame& frame) {
    AttentionArguments a = arguments;
    a.q = q.in(frame);
    a.out = out.in(frame);
    a.segments.push_back(own_segment(q.layout.shape[0], k, v, frame));
    return frame.attend_own(row_port, std::move(a), isa);
  });
}

int32_t record_bound_attention(Plan& plan, const PlanTensor& q, const PlanTensor& out, float scale,
                               bool float32_scores) {
  const AttentionArguments arguments = attention_arguments(q, out, scale, false, float32_scores);
  const Isa isa = active_isa();
  const int32_t port = plan.add_attention_port();
  plan.add("cross_attention", {q.buffer}, {out.buffer}, [=](Frame& frame) {
    AttentionArguments a = arguments;
    a.q = q.in(frame);
    a.out = out.in(frame);
    return frame.attend_bound(port, std::move(a), isa);
  });
  return port;
}

int32_t record_residual_add(Plan& plan, const PlanTensor& x) {
  residual_image(x.layout);
  const Isa isa = active_isa();
  const int32_t port = plan.add_residual_port();
  plan.add("residual_add", {x.buffer}, {x.buffer}, [=](Frame& frame) -> Plan::Step {
    const ResidualImage image = residual_image(x.in(frame));
    return [image, port, isa, &frame](ThreadPool& pool) { residual_add(image, frame.residuals(port), isa, pool); };
  });
  return port;
}

}  // namespace bridle
