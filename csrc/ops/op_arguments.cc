#include "bridle/op_arguments.h"

#include <stdexcept>

#include "bridle/checks.h"

namespace bridle {
namespace {

const float* floats(const char* name, const Strided& tensor, const std::vector<int64_t>& shape) {
  check_compact(name, tensor, Dtype::kFloat32, shape);
  return static_cast<const float*>(tensor.data);
}

const float* shifts(const Strided& shift, int64_t images, int64_t outputs) {
  if (shift.dtype != Dtype::kFloat32 || shift.shape != std::vector<int64_t>{images, outputs} || shift.strides[1] != 1) {
    throw std::invalid_argument("shift is " + text(shift.shape) + ", wants float32 of " + text({images, outputs}) +
                                " with consecutive channels");
  }
  return static_cast<const float*>(shift.data);
}

}  // namespace

GemmArguments product_arguments(const PackedWeights& weights, int64_t images, int64_t positions,
                                const ProductTensors& tensors, const std::string& activation) {
  GemmArguments a;
  a.m = images * positions;
  a.positions = positions;
  a.residual_stride = a.out_stride = weights.n();
  a.activation = activation_named(activation);
  if (tensors.bias != nullptr) a.bias = floats("bias", *tensors.bias, {weights.biases()});
  if (tensors.shift != nullptr) {
    a.shift = shifts(*tensors.shift, images, weights.n());
    a.shift_stride = tensors.shift->strides[0];
  }
  if (tensors.residual != nullptr) {
    check_compact("residual", *tensors.residual, weights.dtype(), {a.m, weights.n()});
    a.residual = tensors.residual->data;
  }
  check_compact("out", *tensors.out, weights.dtype(), {a.m, weights.n()});
  a.out = tensors.out->data;
  return a;
}

int64_t linear_rows(const PackedWeights& weights, const Strided& x) {
  if (x.shape.size() != 2 || weights.widths().size() != 1) throw std::invalid_argument("x wants [m, K]");
  check_compact("x", x, weights.dtype(), {x.shape[0], weights.widths()[0]});
  return x.shape[0];
}

std::vector<ConvSource> conv_sources(const PackedWeights& weights, const std::vector<Strided>& sources) {
  if (sources.empty()) throw std::invalid_argument("sources is empty");
  std::vector<ConvSource> found;
  for (const Strided& source : sources) {
    if (source.shape.size() != 4)
      throw std::invalid_argument("source is " + text(source.shape) + ", wants [R, h, w, C]");
    std::vector<int64_t> wanted = sources.front().shape;
    wanted[3] = source.shape[3];
    check_compact("source", source, weights.dtype(), wanted);
    found.push_back({source.data, wanted[3]});
  }
  return found;
}

GroupNorm group_norm_arguments(const std::vector<Strided>& sources, const Strided& out, const Strided& weight,
                               const Strided& bias, int64_t groups, double eps, const std::string& activation) {
  if (sources.empty() || sources.size() > 2) throw std::invalid_argument("sources wants one or two tensors");
  GroupNorm a;
  a.dtype = sources[0].dtype;
  for (size_t i = 0; i < sources.size(); ++i) {
    const std::vector<int64_t>& shape = sources[i].shape;
    if (shape.size() != 3) throw std::invalid_argument("source is " + text(shape) + ", wants [R, positions, C]");
    a.rows = sources[0].shape[0];
    a.positions = sources[0].shape[1];
    a.channels[i] = shape[2];
    check_compact("source", sources[i], a.dtype, {a.rows, a.positions, shape[2]});
    a.sources[i] = sources[i].data;
  }
  const int64_t channels = a.channels[0] + a.channels[1];
  a.groups = groups;
  a.eps = eps;
  a.weight = floats("weight", weight, {channels});
  a.bias = floats("bias", bias, {channels});
  a.activation = activation_named(activation);
  if (a.activation != Activation::kNone && a.activation != Activation::kSilu) {
    throw std::invalid_argument("group_norm: activation is '" + activation + "', wants '' or silu");
  }
  check_compact("out", out, a.dtype, {a.rows, a.positions, channels});
  a.out = out.data;
  return a;
}

LayerNorm layer_norm_arguments(const Strided& x, const Strided& out, const Strided& weight, const Strided& bias,
                               double eps) {
  if (x.shape.size() != 2) throw std::invalid_argument("x is " + text(x.shape) + ", wants [m, C]");
  LayerNorm a;
  a.dtype = x.dtype;
  a.m = x.shape[0];
  a.channels = x.shape[1];
  check_compact("x", x, a.dtype, {a.m, a.channels});
  a.x = x.data;
  a.eps = eps;
  a.weight = floats("weight", weight, {a.channels});
  a.bias = floats("bias", bias, {a.channels});
  check_compact("out", out, a.dtype, {a.m, a.channels});
  a.out = out.data;
  return a;
}

}  // namespace bridle
