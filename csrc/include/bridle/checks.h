// Arguments checked by name: what is wrong, what it is, and what is wanted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bridle/gemm.h"
#include "bridle/strided.h"

namespace bridle {

std::string text(const std::vector<int64_t>& shape);

// Throws std::invalid_argument for anything but a compact tensor of that shape and dtype.
void check_compact(const char* name, const Strided& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// Throws std::invalid_argument for anything but float32 and bfloat16.
void check_floats(const char* name, const Strided& tensor);

// "float32", "bfloat16" or "int64". Throws std::invalid_argument otherwise.
Dtype dtype_named(const std::string& name);

// "" for none, or the name that PyTorch has for it. Throws std::invalid_argument otherwise.
Activation activation_named(const std::string& name);

}  // namespace bridle
