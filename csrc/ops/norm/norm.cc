#include "bridle/norm.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "ops/norm/norm_kernels.h"

namespace bridle {
namespace {

// Positions whose moments are taken together; what a task reads then stays in L2.
constexpr int64_t kChunk = 64;
constexpr int64_t kLayerRows = 16;

const NormKernels& kernels_for(Dtype dtype, Isa isa) {
  if (dtype != Dtype::kFloat32 && dtype != Dtype::kBFloat16)
    throw std::invalid_argument("norm: wants float32 or bfloat16");
#if defined(__x86_64__)
  if (contains(isa, Isa::kAvx512)) return avx512_norm(dtype);
  if (contains(isa, Isa::kAvx2)) return avx2_norm(dtype);
#endif
  return scalar_norm(dtype);
}

int64_t chunks_of(int64_t positions) { return (positions + kChunk - 1) / kChunk; }

// Mean and sum of squared deviations of a set that grows by merging (Chan, Golub, LeVeque 1983).
struct Running {
  double count = 0, mean = 0, deviation = 0;

  void merge(double n, double other_mean, double other_deviation) {
    const double total = count + n, delta = other_mean - mean;
    mean += delta * n / total;
    deviation += other_deviation + delta * delta * count * n / total;
    count = total;
  }
};

// The workspace: moments [R, chunks, C], then mean, factor and offset [R, C] each.
class GroupNormRun {
 public:
  GroupNormRun(const GroupNorm& a, std::byte* workspace, const NormKernels& kernels)
      : a_(a), kernels_(kernels), channels_(a.channels[0] + a.channels[1]), chunks_(chunks_of(a.positions)) {
    moments_ = reinterpret_cast<Moments*>(workspace);
    mean_ = reinterpret_cast<float*>(moments_ + a.rows * chunks_ * channels_);
    factor_ = mean_ + a.rows * channels_;
    offset_ = factor_ + a.rows * channels_;
  }

  void run(ThreadPool& pool) {
    pool.run(a_.rows * chunks_, [this](int64_t task) { measure(task); });
    pool.run(a_.rows * a_.groups, [this](int64_t task) { combine(task / a_.groups, task % a_.groups); });
    pool.run(a_.rows * chunks_, [this](int64_t task) { apply(task); });
  }

 private:
  int64_t count_at(int64_t chunk) const { return std::min(kChunk, a_.positions - chunk * kChunk); }

  // Calls body(source, its channels, its first channel) with the source at a chunk of a row.
  template <class Body>
  void for_sources(int64_t task, Body body) const {
    const int64_t row = task / chunks_, first = task % chunks_ * kChunk, bytes = element_bytes(a_.dtype);
    for (int64_t i = 0, start = 0; i < 2; start += a_.channels[i++]) {
      if (a_.channels[i] == 0) continue;
      const int64_t place = (row * a_.positions + first) * a_.channels[i];
      body(static_cast<const std::byte*>(a_.sources[i]) + place * bytes, a_.channels[i], start);
    }
  }

  void measure(int64_t task) const {
    for_sources(task, [&](const std::byte* x, int64_t channels, int64_t start) {
      kernels_.moments(x, count_at(task % chunks_), channels, moments_ + task * channels_ + start);
    });
  }

  void combine(int64_t row, int64_t group) const {
    const int64_t width = channels_ / a_.groups, first = group * width;
    Running sum;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const Moments* const found = moments_ + (row * chunks_ + chunk) * channels_;
      const auto n = static_cast<double>(count_at(chunk));
      for (int64_t c = first; c < first + width; ++c) sum.merge(n, found[c].mean, found[c].deviation);
    }
    const double inverse = 1.0 / std::sqrt(sum.deviation / sum.count + a_.eps);
    for (int64_t c = first; c < first + width; ++c) {
      const int64_t place = row * channels_ + c;
      const double scale = a_.scale == nullptr ? 1.0 : 1.0 + a_.scale[place];
      const double factor = inverse * a_.weight[c] * scale;
      mean_[place] = static_cast<float>(sum.mean);
      factor_[place] = static_cast<float>(factor);
      offset_[place] = static_cast<float>(a_.bias[c] * scale + (a_.shift == nullptr ? 0.0 : a_.shift[place]) +
                                          (mean_[place] - sum.mean) * factor);
    }
  }

  void apply(int64_t task) const {
    const int64_t row = task / chunks_, first = task % chunks_ * kChunk, bytes = element_bytes(a_.dtype);
    std::byte* const out = static_cast<std::byte*>(a_.out) + (row * a_.positions + first) * channels_ * bytes;
    for_sources(task, [&](const std::byte* x, int64_t channels, int64_t start) {
      const int64_t place = row * channels_ + start;
      kernels_.apply(x, count_at(task % chunks_), channels, mean_ + place, factor_ + place, offset_ + place,
                     a_.activation, out + start * bytes, channels_);
    });
  }

  const GroupNorm& a_;
  const NormKernels& kernels_;
  const int64_t channels_, chunks_;
  Moments* moments_;
  float *mean_, *factor_, *offset_;
};

}  // namespace

size_t group_norm_workspace(const GroupNorm& a) {
  const int64_t channels = a.channels[0] + a.channels[1];
  return a.rows * channels * (chunks_of(a.positions) * sizeof(Moments) + 3 * sizeof(float));
}

void group_norm(const GroupNorm& a, std::byte* workspace, Isa isa, ThreadPool& pool) {
  const int64_t channels = a.channels[0] + a.channels[1];
  if (a.groups < 1 || channels < 1 || channels % a.groups != 0) {
    throw std::invalid_argument("group_norm: groups is " + std::to_string(a.groups) + ", wants a divisor of " +
                                std::to_string(channels));
  }
  GroupNormRun(a, workspace, kernels_for(a.dtype, isa)).run(pool);
}

void layer_norm(const LayerNorm& a, Isa isa, ThreadPool& pool) {
  if (a.channels < 1) throw std::invalid_argument("layer_norm: x has no channels");
  const NormKernels& kernels = kernels_for(a.dtype, isa);
  const int64_t bytes = a.channels * element_bytes(a.dtype);
  pool.run((a.m + kLayerRows - 1) / kLayerRows, [&](int64_t task) {
    for (int64_t row = task * kLayerRows; row < std::min(a.m, (task + 1) * kLayerRows); ++row) {
      kernels.layer(static_cast<const std::byte*>(a.x) + row * bytes, a.channels, a.eps, a.weight, a.bias,
                    static_cast<std::byte*>(a.out) + row * bytes);
    }
  });
}

}  // namespace bridle
