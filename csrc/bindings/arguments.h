// Arguments of ops from Python, checked by name.
#pragma once

#include <string>
#include <vector>

#include "bindings/dlpack.h"
#include "bridle/gemm.h"
#include "bridle/upsample.h"

namespace bridle::python {

std::string text(const std::vector<int64_t>& shape);

// Throws std::invalid_argument for anything but a compact tensor of that shape and dtype.
void check_compact(const char* name, const Strided& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// A compact tensor of that shape and dtype, or nullptr for None. Throws std::invalid_argument otherwise.
void* compact(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// The same where None is refused too.
void* required(const char* name, const Borrowed& tensor, Dtype dtype, const std::vector<int64_t>& shape);

// x: [R, h, w, C]. out: [R, h', w', C]. Throws std::invalid_argument for what does not fit.
Upsample upsample_of(const Strided& x, const Strided& out);

// "float32" or "bfloat16". Throws std::invalid_argument otherwise.
Dtype dtype_named(const std::string& name);

// "" for none, or the name that PyTorch has for it. Throws std::invalid_argument otherwise.
Activation activation_named(const std::string& name);

}  // namespace bridle::python
