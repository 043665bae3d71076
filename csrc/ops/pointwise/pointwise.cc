#include "bridle/pointwise.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "bridle/checks.h"
#include "ops/activate.h"
#include "ops/element.h"

namespace bridle {
namespace {

constexpr int64_t kStrip = 256;  // on the stack at a time
constexpr int64_t kTask = 16 * kStrip;

template <class Element>
void strip(const Pointwise& a, int64_t first, int64_t count) {
  const auto* const x = static_cast<const typename Element::Stored*>(a.x) + first;
  auto* const out = static_cast<typename Element::Stored*>(a.out) + first;
  float values[kStrip];
  for (int64_t i = 0; i < count; ++i) values[i] = a.scale * Element::widen(x[i]) + a.shift;
  activate(a.activation, values, count);
  for (int64_t i = 0; i < count; ++i) out[i] = Element::narrow(values[i]);
}

}  // namespace

Pointwise pointwise_of(const Strided& x, const Strided& out, double scale, double shift,
                       const std::string& activation) {
  check_floats("x", x);
  check_compact("x", x, x.dtype, x.shape);
  check_compact("out", out, x.dtype, x.shape);
  const int64_t count = std::accumulate(x.shape.begin(), x.shape.end(), int64_t{1}, std::multiplies<>());
  return {x.data,
          out.data,
          count,
          x.dtype,
          static_cast<float>(scale),
          static_cast<float>(shift),
          activation_named(activation)};
}

void pointwise(const Pointwise& a, ThreadPool& pool) {
  pool.run((a.count + kTask - 1) / kTask, [&](int64_t task) {
    const int64_t end = std::min(a.count, (task + 1) * kTask);
    for (int64_t first = task * kTask; first < end; first += kStrip) {
      const int64_t count = std::min(kStrip, end - first);
      if (a.dtype == Dtype::kFloat32) {
        strip<Float32>(a, first, count);
      } else {
        strip<BFloat16>(a, first, count);
      }
    }
  });
}

}  // namespace bridle
