// Whole numbers rounded up.
#pragma once

#include <cstdint>

namespace bridle {

// value / divisor, of numbers from 0 and 1 on.
constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// The least multiple of `to` that is not below `value`.
constexpr int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }

}  // namespace bridle
