// Rows of weights, wherever they lie, in the order of a panel.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "ops/element.h"

namespace bridle {
namespace {

// How a panel holds elements of K that begin at `row`: one after another, or in bfloat16 two of them in a word.
// `stride` leads to the next one.
template <class From>
struct Float32Words {
  using Source = typename From::Stored;
  using Word = float;
  static constexpr int64_t kDepth = 1;
  static Word word(const Source* row, int64_t) { return From::widen(*row); }
};

template <class From>
struct BFloat16Words {
  using Source = typename From::Stored;
  using Word = uint16_t;
  static constexpr int64_t kDepth = 1;
  static Word word(const Source* row, int64_t) { return BFloat16::narrow(From::widen(*row)); }
};

template <class From>
struct BFloat16Pairs {
  using Source = typename From::Stored;
  using Word = uint32_t;
  static constexpr int64_t kDepth = 2;
  static Word word(const Source* row, int64_t stride) {
    const uint32_t first = BFloat16::narrow(From::widen(row[0])), second = BFloat16::narrow(From::widen(row[stride]));
    return first | second << 16;
  }
};

// Rows [taps][channels], the channels innermost in K; strides in elements.
struct RowShape {
  int64_t taps, tap_stride, channels, channel_stride;
  bool operator==(const RowShape&) const = default;
};

// Every panel has a multiple of that many places.
constexpr int64_t kPlaces = 8;

// The rows of so many places; nullptr stands for zeros.
using PlaceRows = std::array<const void*, kPlaces>;

// Words of K at those places, `width` words apart for the next one.
template <class Words, bool kWhole>
void pack_rows(const PlaceRows& rows, const RowShape& shape, int64_t width, typename Words::Word* out) {
  using Source = typename Words::Source;
  for (int64_t tap = 0; tap < shape.taps; ++tap) {
    for (int64_t c = 0; c < shape.channels; c += Words::kDepth, out += width) {
      const int64_t from = tap * shape.tap_stride + c * shape.channel_stride;
      for (int64_t j = 0; j < kPlaces; ++j) {
        const auto* const row = static_cast<const Source*>(rows[j]);
        out[j] = kWhole || row != nullptr ? Words::word(row + from, shape.channel_stride) : typename Words::Word{};
      }
    }
  }
}

template <class Words>
void pack_places(const PlaceRows& rows, const RowShape& shape, int64_t width, int64_t first, void* panel) {
  auto* const out = static_cast<typename Words::Word*>(panel) + first;
  const bool whole = std::find(rows.begin(), rows.end(), nullptr) == rows.end();
  (whole ? pack_rows<Words, true> : pack_rows<Words, false>)(rows, shape, width, out);
}

}  // namespace
}  // namespace bridle
