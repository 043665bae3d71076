// Copies between tensors of any strides: what is joined, cut out, repeated or laid out in another order.
#pragma once

#include <cstdint>
#include <vector>

#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// Elements of `bytes` each. from, to: strides of x and out in elements, in the order of `shape`. The dimensions are
// those of out by falling stride, joined where they can be: `shape` has one at least.
struct Copy {
  const void* x = nullptr;
  void* out = nullptr;
  int64_t bytes = 0;
  std::vector<int64_t> shape, from, to;
};

// Throws std::invalid_argument unless both have one shape and dtype, and out has a place for every element.
Copy copy_of(const Strided& x, const Strided& out);

void copy(const Copy& arguments, ThreadPool& pool);

}  // namespace bridle
