#include "bridle/residual_add.h"

#include <algorithm>
#include <stdexcept>

#include "bridle/checks.h"
#include "ops/residual_add/residual_kernels.h"

namespace bridle {
namespace {

constexpr int64_t kPositions = 64;  // of a task

AddResiduals kernel_for(Dtype dtype, Isa isa) {
#if defined(__x86_64__)
  if (contains(isa, Isa::kAvx512)) return avx512_add_residuals(dtype);
  if (contains(isa, Isa::kAvx2)) return avx2_add_residuals(dtype);
#endif
  static_cast<void>(isa);
  return scalar_add_residuals(dtype);
}

}  // namespace

ResidualImage residual_image(const Strided& x) {
  if (x.shape.size() != 3) throw std::invalid_argument("x is " + text(x.shape) + ", wants [R, positions, C]");
  check_floats("x", x);
  check_compact("x", x, x.dtype, x.shape);
  return {x.data, x.shape[0], x.shape[1], x.shape[2], x.dtype};
}

void residual_add(const ResidualImage& image, const std::vector<ResidualTerm>& terms, Isa isa, ThreadPool& pool) {
  const int64_t chunks = (image.positions + kPositions - 1) / kPositions;
  const AddResiduals add = kernel_for(image.dtype, isa);
  if (terms.empty()) return;
  pool.run(image.rows * chunks, [&](int64_t task) {
    const int64_t first = task % chunks * kPositions;
    add(image, terms, task / chunks, first, std::min(image.positions, first + kPositions));
  });
}

}  // namespace bridle
