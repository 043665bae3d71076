// A tensor of a plan: where it will lie in every frame.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bridle/plan.h"
#include "bridle/strided.h"

namespace bridle::python {

// layout.data is absent. offset: bytes from the buffer's first.
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

}  // namespace bridle::python
