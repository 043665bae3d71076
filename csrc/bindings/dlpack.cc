#include "bindings/dlpack.h"

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bridle::python {
namespace {

// The structures of the DLPack ABI (dmlc/dlpack, version 0.8 and the unversioned capsule of 1.x).
struct DLDevice {
  int32_t type;
  int32_t id;
};

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* manager_context;
  void (*deleter)(DLManagedTensor*);
};

constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0;
constexpr uint8_t kFloat = 2;
constexpr uint8_t kBfloat = 4;

[[noreturn]] void refuse(const char* name, const char* wants) {
  throw std::invalid_argument(std::string(name) + " wants " + wants);
}

Dtype float_of(const char* name, const DLDataType& type) {
  if (type.lanes == 1 && type.code == kFloat && type.bits == 32) return Dtype::kFloat32;
  if (type.lanes == 1 && type.code == kFloat && type.bits == 16) return Dtype::kFloat16;
  if (type.lanes == 1 && type.code == kBfloat && type.bits == 16) return Dtype::kBFloat16;
  refuse(name, "float32, float16 or bfloat16");
}

Dtype integer_of(const char* name, const DLDataType& type) {
  if (type.lanes == 1 && type.code == kInt && type.bits == 64) return Dtype::kInt64;
  refuse(name, "int64");
}

Dtype element_of(const char* name, const DLDataType& type) {
  return type.code == kInt ? integer_of(name, type) : float_of(name, type);
}

Borrowed borrow_as(const char* name, const pybind11::object& tensor,
                   Dtype (*dtype_of)(const char*, const DLDataType&)) {
  if (tensor.is_none()) return {};
  if (!pybind11::hasattr(tensor, "__dlpack__")) refuse(name, "a tensor with __dlpack__");
  // The capsule is not renamed: its own destructor frees the structure when `owner` goes.
  pybind11::capsule capsule = tensor.attr("__dlpack__")();
  const auto* managed = static_cast<const DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw pybind11::error_already_set();
  const DLTensor& source = managed->tensor;
  if (source.device.type != kCpu) refuse(name, "a tensor in CPU memory");
  Strided view;
  view.dtype = dtype_of(name, source.dtype);
  view.data = static_cast<uint8_t*>(source.data) + source.byte_offset;
  view.shape.assign(source.shape, source.shape + source.ndim);
  view.strides.assign(source.ndim, 1);
  for (int32_t i = source.ndim - 1; i >= 0; --i) {
    const int64_t compact = i + 1 < source.ndim ? view.strides[i + 1] * view.shape[i + 1] : 1;
    view.strides[i] = source.strides != nullptr ? source.strides[i] : compact;
  }
  return {std::move(view), std::move(capsule)};
}

}  // namespace

Borrowed borrow(const char* name, const pybind11::object& tensor) { return borrow_as(name, tensor, &float_of); }

Borrowed borrow_integers(const char* name, const pybind11::object& tensor) {
  return borrow_as(name, tensor, &integer_of);
}

Borrowed borrow_elements(const char* name, const pybind11::object& tensor) {
  return borrow_as(name, tensor, &element_of);
}

}  // namespace bridle::python
