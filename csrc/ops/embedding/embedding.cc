#include "bridle/embedding.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "bridle/checks.h"
#include "ops/element.h"

namespace bridle {
namespace {

template <class Table, class Element>
void embed(const Embedding& a, int64_t place) {
  using Stored = typename Element::Stored;
  const auto* const token = static_cast<const typename Table::Stored*>(a.tokens) + a.ids[place] * a.channels;
  const auto* const position = static_cast<const Stored*>(a.positions) + place % a.length * a.channels;
  auto* const out = static_cast<Stored*>(a.out) + place * a.channels;
  for (int64_t c = 0; c < a.channels; ++c) {
    const float rounded = Element::widen(Element::narrow(Table::widen(token[c])));
    out[c] = Element::narrow(rounded + Element::widen(position[c]));
  }
}

int64_t end_place(const int64_t* ids, int64_t length, std::optional<int64_t> end) {
  if (!end) return std::max_element(ids, ids + length) - ids;
  const int64_t* const found = std::find(ids, ids + length, *end);
  return found == ids + length ? 0 : found - ids;
}

}  // namespace

Embedding embedding_of(const Strided& ids, const Strided& tokens, const Strided& positions, const Strided& out) {
  if (ids.shape.size() != 2) throw std::invalid_argument("ids is " + text(ids.shape) + ", wants [R, N]");
  if (tokens.shape.size() != 2) throw std::invalid_argument("tokens is " + text(tokens.shape) + ", wants [V, C]");
  check_floats("tokens", tokens);
  const int64_t length = ids.shape[1], channels = tokens.shape[1];
  if (positions.shape.size() != 2 || positions.shape[0] < length || positions.shape[1] != channels) {
    throw std::invalid_argument("positions is " + text(positions.shape) + ", wants " + text({length, channels}) +
                                " or longer");
  }
  check_compact("ids", ids, Dtype::kInt64, ids.shape);
  check_compact("tokens", tokens, tokens.dtype, tokens.shape);
  const Dtype dtype = tokens.dtype == Dtype::kFloat32 ? out.dtype : tokens.dtype;
  check_floats("out", out);
  check_compact("positions", positions, dtype, positions.shape);
  check_compact("out", out, dtype, {ids.shape[0], length, channels});
  return {static_cast<const int64_t*>(ids.data),
          tokens.data,
          positions.data,
          out.data,
          ids.shape[0],
          length,
          channels,
          tokens.shape[0],
          dtype,
          tokens.dtype};
}

void embedding(const Embedding& a, ThreadPool& pool) {
  const int64_t count = a.rows * a.length;
  for (int64_t i = 0; i < count; ++i) {
    if (a.ids[i] < 0 || a.ids[i] >= a.vocabulary) {
      throw std::out_of_range("embedding: an id is " + std::to_string(a.ids[i]) + ", wants 0 to " +
                              std::to_string(a.vocabulary - 1));
    }
  }
  pool.run(count, [&](int64_t place) {
    if (a.dtype == Dtype::kFloat32) {
      embed<Float32, Float32>(a, place);
    } else if (a.table == Dtype::kFloat32) {
      embed<Float32, BFloat16>(a, place);
    } else {
      embed<BFloat16, BFloat16>(a, place);
    }
  });
}

EndToken end_token_of(const Strided& x, const Strided& ids, const Strided& out, std::optional<int64_t> end) {
  if (x.shape.size() != 3 || x.shape[1] < 1) {
    throw std::invalid_argument("x is " + text(x.shape) + ", wants [R, N, C] of a token or more");
  }
  check_floats("x", x);
  check_compact("x", x, x.dtype, x.shape);
  check_compact("ids", ids, Dtype::kInt64, {x.shape[0], x.shape[1]});
  check_compact("out", out, x.dtype, {x.shape[0], x.shape[2]});
  return {x.data,     static_cast<const int64_t*>(ids.data), out.data, x.shape[0],
          x.shape[1], x.shape[2] * element_bytes(x.dtype),   end};
}

void end_token(const EndToken& a, ThreadPool& pool) {
  pool.run(a.rows, [&](int64_t row) {
    const int64_t place = row * a.length + end_place(a.ids + row * a.length, a.length, a.end);
    std::memcpy(static_cast<std::byte*>(a.out) + row * a.channel_bytes,
                static_cast<const std::byte*>(a.x) + place * a.channel_bytes, a.channel_bytes);
  });
}

}  // namespace bridle
