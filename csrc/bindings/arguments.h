// Arguments of ops from Python, checked by name.
#pragma once

#include <string>
#include <vector>

#include "bindings/dlpack.h"
#include "bridle/checks.h"

namespace bridle::python {

// A compact tensor of that shape and dtype, or nullptr for None. Throws std::invalid_argument otherwise.
void* compact(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// The same where None is refused too.
void* required(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

}  // namespace bridle::python
