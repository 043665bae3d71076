#include "bridle/average_pool.h"

#include <algorithm>
#include <stdexcept>

#include "bridle/checks.h"
#include "ops/element.h"

namespace bridle {
namespace {

constexpr int64_t kChannels = 64;  // of a task, summed on the stack

std::vector<Span> halves(int64_t side) {
  std::vector<Span> found;
  for (int64_t i = 0; i < side; i += 2) found.push_back({i, std::min(side, i + 2)});
  return found;
}

std::vector<Span> areas(int64_t side, int64_t out_side) {
  std::vector<Span> found;
  for (int64_t i = 0; i < out_side; ++i) found.push_back({i * side / out_side, ((i + 1) * side - 1) / out_side + 1});
  return found;
}

AveragePool pool_of(const Strided& x, const Strided& out) {
  check_floats("x", x);
  const auto image = [](const Strided& t) {
    return t.shape.size() == 4 && *std::min_element(t.shape.begin(), t.shape.end()) > 0;
  };
  if (!image(x)) throw std::invalid_argument("x is " + text(x.shape) + ", wants [R, h, w, C] of 1 or more");
  if (!image(out) || out.shape[0] != x.shape[0] || out.shape[3] != x.shape[3]) {
    throw std::invalid_argument("out is " + text(out.shape) + ", wants the rows and channels of " + text(x.shape));
  }
  check_compact("x", x, x.dtype, x.shape);
  check_compact("out", out, x.dtype, out.shape);
  return {x.data, out.data, x.shape[0], x.shape[1], x.shape[2], x.shape[3], x.dtype, {}, {}};
}

// Some channels of a line of out.
template <class Element>
class Line {
 public:
  Line(const AveragePool& a, int64_t row, int64_t line, int64_t channel)
      : a_(a), row_(row), line_(line), channel_(channel), count_(std::min(kChannels, a.channels - channel)) {}

  void run() const {
    const auto width = static_cast<int64_t>(a_.columns.size()), height = static_cast<int64_t>(a_.lines.size());
    const Span lines = a_.lines[line_];
    for (int64_t column = 0; column < width; ++column) {
      const Span columns = a_.columns[column];
      float sums[kChannels] = {};
      for (int64_t y = lines.begin; y < lines.end; ++y) add_line(y, columns, sums);
      const auto size = static_cast<float>((lines.end - lines.begin) * (columns.end - columns.begin));
      auto* const out = static_cast<Stored*>(a_.out) + ((row_ * height + line_) * width + column) * a_.channels;
      for (int64_t c = 0; c < count_; ++c) out[channel_ + c] = Element::narrow(sums[c] / size);
    }
  }

 private:
  using Stored = typename Element::Stored;

  void add_line(int64_t y, Span columns, float* sums) const {
    float line[kChannels] = {};
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const auto* const pixel =
          static_cast<const Stored*>(a_.x) + ((row_ * a_.height + y) * a_.width + x) * a_.channels + channel_;
      for (int64_t c = 0; c < count_; ++c) line[c] += Element::widen(pixel[c]);
    }
    for (int64_t c = 0; c < count_; ++c) sums[c] += line[c];
  }

  const AveragePool& a_;
  const int64_t row_, line_, channel_, count_;
};

}  // namespace

AveragePool halving_pool_of(const Strided& x, const Strided& out) {
  AveragePool a = pool_of(x, out);
  a.lines = halves(a.height);
  a.columns = halves(a.width);
  const std::vector<int64_t> wanted = {a.rows, static_cast<int64_t>(a.lines.size()),
                                       static_cast<int64_t>(a.columns.size()), a.channels};
  if (out.shape != wanted) throw std::invalid_argument("out is " + text(out.shape) + ", wants " + text(wanted));
  return a;
}

AveragePool area_pool_of(const Strided& x, const Strided& out) {
  AveragePool a = pool_of(x, out);
  a.lines = areas(a.height, out.shape[1]);
  a.columns = areas(a.width, out.shape[2]);
  return a;
}

void average_pool(const AveragePool& a, ThreadPool& pool) {
  const int64_t chunks = (a.channels + kChannels - 1) / kChannels, height = static_cast<int64_t>(a.lines.size());
  pool.run(a.rows * height * chunks, [&](int64_t task) {
    const int64_t line = task / chunks, channel = task % chunks * kChannels;
    if (a.dtype == Dtype::kFloat32) {
      Line<Float32>(a, line / height, line % height, channel).run();
    } else {
      Line<BFloat16>(a, line / height, line % height, channel).run();
    }
  });
}

}  // namespace bridle
