#include "bridle/copy.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "bridle/checks.h"

namespace bridle {
namespace {

constexpr int64_t kTaskElements = 8192;
constexpr size_t kMostDimensions = 8;

// Appends a dimension, or makes the last one longer where the elements go on in both tensors.
void append(Copy& a, int64_t side, int64_t from, int64_t to) {
  if (!a.shape.empty() && a.from.back() == from * side && a.to.back() == to * side) {
    a.shape.back() *= side;
    a.from.back() = from;
    a.to.back() = to;
    return;
  }
  a.shape.push_back(side);
  a.from.push_back(from);
  a.to.push_back(to);
}

// The lines of the last dimension from one on, in order.
class Lines {
 public:
  Lines(const Copy& a, int64_t first) : a_(a), outer_(a.shape.size() - 1) {
    for (size_t d = outer_; d-- > 0; first /= a.shape[d]) {
      index_[d] = first % a.shape[d];
      from_ += index_[d] * a.from[d];
      to_ += index_[d] * a.to[d];
    }
  }

  int64_t from() const { return from_; }
  int64_t to() const { return to_; }

  void advance() {
    for (size_t d = outer_; d-- > 0;) {
      from_ += a_.from[d];
      to_ += a_.to[d];
      if (++index_[d] < a_.shape[d]) return;
      from_ -= a_.shape[d] * a_.from[d];
      to_ -= a_.shape[d] * a_.to[d];
      index_[d] = 0;
    }
  }

 private:
  const Copy& a_;
  const size_t outer_;
  std::array<int64_t, kMostDimensions> index_ = {};
  int64_t from_ = 0, to_ = 0;
};

template <class Element>
void copy_lines(const Copy& a, int64_t first, int64_t last) {
  const int64_t length = a.shape.back(), from_step = a.from.back(), to_step = a.to.back();
  Lines lines(a, first);
  for (int64_t line = first; line < last; ++line, lines.advance()) {
    const Element* const from = static_cast<const Element*>(a.x) + lines.from();
    Element* const to = static_cast<Element*>(a.out) + lines.to();
    if (from_step == 1 && to_step == 1) {
      std::memcpy(to, from, length * sizeof(Element));
    } else {
      for (int64_t i = 0; i < length; ++i) to[i * to_step] = from[i * from_step];
    }
  }
}

}  // namespace

Copy copy_of(const Strided& x, const Strided& out) {
  if (x.dtype != out.dtype) throw std::invalid_argument("out has another dtype than x");
  if (x.shape != out.shape) throw std::invalid_argument("out is " + text(out.shape) + ", wants " + text(x.shape));
  if (x.shape.size() > kMostDimensions)
    throw std::invalid_argument("x is " + text(x.shape) + ", wants 8 sides at most");
  std::vector<size_t> order;
  for (size_t d = 0; d < out.shape.size(); ++d) {
    if (out.shape[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return out.strides[a] > out.strides[b]; });
  Copy a{x.data, out.data, element_bytes(x.dtype), {}, {}, {}};
  int64_t behind = 0;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (out.shape[*d] > 1 && out.strides[*d] <= behind) throw std::invalid_argument("out has elements in one place");
    behind += (out.shape[*d] - 1) * out.strides[*d];
  }
  for (const size_t d : order) append(a, out.shape[d], x.strides[d], out.strides[d]);
  if (a.shape.empty()) append(a, 1, 1, 1);
  return a;
}

void copy(const Copy& a, ThreadPool& pool) {
  const int64_t lines = std::accumulate(a.shape.begin(), a.shape.end() - 1, int64_t{1}, std::multiplies<>());
  if (lines == 0 || a.shape.back() == 0) return;
  const int64_t share = std::max<int64_t>(1, kTaskElements / a.shape.back());
  pool.run((lines + share - 1) / share, [&](int64_t task) {
    const int64_t first = task * share, last = std::min(lines, first + share);
    if (a.bytes == 2) return copy_lines<uint16_t>(a, first, last);
    if (a.bytes == 4) return copy_lines<uint32_t>(a, first, last);
    copy_lines<uint64_t>(a, first, last);
  });
}

}  // namespace bridle
