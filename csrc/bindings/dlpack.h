// Reads a Python tensor through the DLPack protocol, without copying and without linking against its library.
#pragma once

#include <pybind11/pybind11.h>

#include "bridle/strided.h"

namespace bridle::python {

// A tensor and the capsule that keeps its memory alive.
struct Borrowed {
  Strided tensor;
  pybind11::object owner;
};

// None gives an absent tensor. name: for messages. Throws std::invalid_argument for anything that is no CPU tensor of
// float32, float16 or bfloat16.
Borrowed borrow(const char* name, const pybind11::object& tensor);

// The same for int64.
Borrowed borrow_integers(const char* name, const pybind11::object& tensor);

// The same for any of the four.
Borrowed borrow_elements(const char* name, const pybind11::object& tensor);

}  // namespace bridle::python
