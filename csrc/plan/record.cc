#include "bridle/record.h"

#include <numeric>
#include <stdexcept>
#include <utility>

#include "bridle/checks.h"
#include "bridle/conv2d.h"
#include "bridle/norm.h"
#include "bridle/upsample.h"

namespace bridle {
namespace {

using Buffers = std::vector<int32_t>;

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

void check(const char* name, const OptionalTensor& tensor, Dtype dtype, const std::vector<int64_t>& shape) {
  if (tensor) check_compact(name, tensor->layout, dtype, shape);
}

void add_to(Buffers& buffers, const OptionalTensor& tensor) {
  if (tensor) buffers.push_back(tensor->buffer);
}

// What linear and conv2d take beyond their left operand.
struct Epilogue {
  OptionalTensor bias, shift, residual;
  PlanTensor out;
  GemmArguments arguments;

  // Rows of `shift` may lie apart: they are columns of a table.
  Epilogue(const PackedWeights& weights, int64_t images, int64_t positions, OptionalTensor b, OptionalTensor s,
           OptionalTensor r, PlanTensor o, const std::string& activation)
      : bias(std::move(b)), shift(std::move(s)), residual(std::move(r)), out(std::move(o)) {
    const int64_t m = images * positions;
    check("bias", bias, Dtype::kFloat32, {weights.biases()});
    check("residual", residual, weights.dtype(), {m, weights.n()});
    check_compact("out", out.layout, weights.dtype(), {m, weights.n()});
    if (shift && (shift->layout.dtype != Dtype::kFloat32 || shift->layout.strides[1] != 1 ||
                  shift->layout.shape != std::vector<int64_t>{images, weights.n()})) {
      throw std::invalid_argument("shift is " + text(shift->layout.shape) + ", wants float32 of " +
                                  text({images, weights.n()}) + " with consecutive channels");
    }
    arguments.m = m;
    arguments.positions = positions;
    arguments.shift_stride = shift ? shift->layout.strides[0] : 0;
    arguments.residual_stride = arguments.out_stride = weights.n();
    arguments.activation = activation_named(activation);
  }

  Buffers reads() const {
    Buffers found;
    for (const OptionalTensor* tensor : {&bias, &shift, &residual}) add_to(found, *tensor);
    return found;
  }

  GemmArguments in(const Frame& frame) const {
    GemmArguments a = arguments;
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
AttentionSegment own_segment(int64_t rows, int64_t keys) {
  AttentionSegment segment;
  segment.q_rows.resize(rows);
  std::iota(segment.q_rows.begin(), segment.q_rows.end(), 0);
  segment.k_rows = segment.v_rows = segment.q_rows;
  segment.pieces.push_back({{}, {}, std::vector<int32_t>(rows, static_cast<int32_t>(keys))});
  return segment;
}

}  // namespace

void record_linear(Plan& plan, const Weights& weights, const PlanTensor& x, const PlanTensor& out,
                   const OptionalTensor& bias, const OptionalTensor& residual, const std::string& activation) {
  if (x.layout.shape.size() != 2 || weights->widths().size() != 1) throw std::invalid_argument("x wants [m, K]");
  const int64_t m = x.layout.shape[0], k = weights->widths()[0];
  check_compact("x", x.layout, weights->dtype(), {m, k});
  const Epilogue epilogue(*weights, 1, m, bias, {}, residual, out, activation);
  Buffers reads = epilogue.reads();
  reads.push_back(x.buffer);
  plan.add("linear", reads, {out.buffer}, [=](Frame& frame) {
    return product(weights, epilogue.in(frame), MatrixRows(x.at(frame), k * bytes_of(weights->dtype())));
  });
}

void record_conv2d(Plan& plan, const Weights& weights, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                   const std::vector<int64_t>& kernel, int64_t stride, const std::vector<int64_t>& padding,
                   int64_t upsample, const OptionalTensor& bias, const OptionalTensor& shift,
                   const OptionalTensor& residual, const std::string& activation) {
  if (sources.empty()) throw std::invalid_argument("sources is empty");
  std::vector<ConvSource> inputs;
  for (const PlanTensor& source : sources) {
    if (source.layout.shape.size() != 4) throw std::invalid_argument("source wants [R, h, w, C]");
    std::vector<int64_t> wanted = sources.front().layout.shape;
    wanted[3] = source.layout.shape[3];
    check_compact("source", source.layout, weights->dtype(), wanted);
    inputs.push_back({nullptr, wanted[3]});
  }
  const ConvGeometry g = conv_geometry(sources.front().layout.shape, kernel, stride, padding, upsample);
  check_spans(*weights, inputs, g);
  const Epilogue epilogue(*weights, g.rows, g.out_height * g.out_width, bias, shift, residual, out, activation);
  Buffers reads = epilogue.reads();
  for (const PlanTensor& source : sources) reads.push_back(source.buffer);
  plan.add("conv2d", reads, {out.buffer}, [=](Frame& frame) {
    std::vector<ConvSource> found = inputs;
    for (size_t i = 0; i < found.size(); ++i) found[i].data = sources[i].at(frame);
    return product(weights, epilogue.in(frame), ConvRows(found, g, weights->zeros(), bytes_of(weights->dtype())));
  });
}

void record_group_norm(Plan& plan, const std::vector<PlanTensor>& sources, const PlanTensor& out,
                       const PlanTensor& weight, const PlanTensor& bias, int64_t groups, double eps,
                       const std::string& activation) {
  if (sources.empty() || sources.size() > 2) throw std::invalid_argument("sources wants one or two tensors");
  GroupNorm a;
  a.dtype = sources[0].layout.dtype;
  Buffers reads = {weight.buffer, bias.buffer};
  for (size_t i = 0; i < sources.size(); ++i) {
    const std::vector<int64_t>& shape = sources[i].layout.shape;
    if (shape.size() != 3) throw std::invalid_argument("source is " + text(shape) + ", wants [R, positions, C]");
    a.rows = sources[0].layout.shape[0];
    a.positions = sources[0].layout.shape[1];
    a.channels[i] = shape[2];
    check_compact("source", sources[i].layout, a.dtype, {a.rows, a.positions, shape[2]});
    reads.push_back(sources[i].buffer);
  }
  const int64_t channels = a.channels[0] + a.channels[1];
  check_compact("weight", weight.layout, Dtype::kFloat32, {channels});
  check_compact("bias", bias.layout, Dtype::kFloat32, {channels});
  check_compact("out", out.layout, a.dtype, {a.rows, a.positions, channels});
  a.groups = groups;
  a.eps = eps;
  a.activation = activation_named(activation);
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
  LayerNorm a;
  if (x.layout.shape.size() != 2) throw std::invalid_argument("x is " + text(x.layout.shape) + ", wants [m, C]");
  a.dtype = x.layout.dtype;
  a.m = x.layout.shape[0];
  a.channels = x.layout.shape[1];
  check_compact("x", x.layout, a.dtype, {a.m, a.channels});
  check_compact("weight", weight.layout, Dtype::kFloat32, {a.channels});
  check_compact("bias", bias.layout, Dtype::kFloat32, {a.channels});
  check_compact("out", out.layout, a.dtype, {a.m, a.channels});
  a.eps = eps;
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

void record_own_attention(Plan& plan, const PlanTensor& q, const PlanTensor& k, const PlanTensor& v,
                          const PlanTensor& out, float scale, bool causal, bool float32_scores, int32_t row_port) {
  const AttentionArguments arguments = attention_arguments(q, out, scale, causal, float32_scores);
  for (const PlanTensor* part : {&k, &v}) {
    const std::vector<int64_t>&shape = part->layout.shape, &wanted = q.layout.shape;
    if (shape.size() != 4 || shape[0] != wanted[0] || shape[1] != k.layout.shape[1] || shape[2] != wanted[2] ||
        shape[3] != wanted[3] || part->layout.strides[3] != 1 || part->layout.dtype != q.layout.dtype) {
      throw std::invalid_argument("k and v want [R, L, H, d] with consecutive channels");
    }
  }
  const Isa isa = active_isa();
  plan.add("self_attention", {q.buffer, k.buffer, v.buffer}, {out.buffer}, [=](Frame& frame) {
    AttentionArguments a = arguments;
    a.q = q.in(frame);
    a.out = out.in(frame);
    a.segments.push_back(own_segment(q.layout.shape[0], k.layout.shape[1]));
    a.segments.back().pieces.back().k = k.in(frame);
    a.segments.back().pieces.back().v = v.in(frame);
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
  const std::vector<int64_t>& shape = x.layout.shape;
  if (shape.size() != 3) throw std::invalid_argument("x is " + text(shape) + ", wants [R, positions, C]");
  check_compact("x", x.layout, x.layout.dtype, shape);
  const int32_t port = plan.add_residual_port();
  plan.add("residual_add", {x.buffer}, {x.buffer}, [=](Frame& frame) -> Plan::Step {
    const ResidualImage image{x.at(frame), x.layout.shape[0], x.layout.shape[1], x.layout.shape[2], x.layout.dtype};
    return [image, port, &frame](ThreadPool& pool) { residual_add(image, frame.residuals(port), pool); };
  });
  return port;
}

void record_add(Plan& plan, const PlanTensor& x, const PlanTensor& values) {
  const std::vector<int64_t>& shape = x.layout.shape;
  if (shape.size() != 3) throw std::invalid_argument("x is " + text(shape) + ", wants [R, positions, C]");
  check_compact("x", x.layout, x.layout.dtype, shape);
  check_compact("values", values.layout, x.layout.dtype, shape);
  plan.add("add", {x.buffer, values.buffer}, {x.buffer}, [=](Frame& frame) -> Plan::Step {
    const ResidualImage image{x.at(frame), x.layout.shape[0], x.layout.shape[1], x.layout.shape[2], x.layout.dtype};
    ResidualTerm term{values.at(frame), image.positions * image.channels, image.channels, {}, {}, nullptr, 0};
    term.rows.resize(image.rows);
    std::iota(term.rows.begin(), term.rows.end(), 0);
    term.scale.assign(image.rows, 1.0f);
    return [image, terms = std::vector<ResidualTerm>{term}](ThreadPool& pool) { residual_add(image, terms, pool); };
  });
}

void record_upsample(Plan& plan, const PlanTensor& x, const PlanTensor& out) {
  const Upsample a = upsample_of(x.layout, out.layout);
  plan.add("upsample", {x.buffer}, {out.buffer}, [=](Frame& frame) -> Plan::Step {
    Upsample n = a;
    n.x = x.at(frame);
    n.out = out.at(frame);
    return [n](ThreadPool& pool) { upsample(n, pool); };
  });
}

}  // namespace bridle
