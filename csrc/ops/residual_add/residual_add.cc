#include "bridle/residual_add.h"

#include <algorithm>
#include <stdexcept>

#include "bridle/checks.h"
#include "ops/element.h"

namespace bridle {
namespace {

constexpr int64_t kPositions = 64;  // of a task
constexpr int64_t kChannels = 512;  // summed on the stack at a time

template <class Element>
class Add {
 public:
  using Stored = typename Element::Stored;

  Add(const ResidualImage& image, const std::vector<ResidualTerm>& terms) : image_(image), terms_(terms) {}

  void run(int64_t row, int64_t first) const {
    if (!named(row)) return;
    const int64_t end = std::min(image_.positions, first + kPositions);
    for (int64_t position = first; position < end; ++position) {
      auto* const pixel = static_cast<Stored*>(image_.x) + (row * image_.positions + position) * image_.channels;
      for (int64_t c = 0; c < image_.channels; c += kChannels) {
        add(row, position, c, std::min(kChannels, image_.channels - c), pixel + c);
      }
    }
  }

 private:
  bool named(int64_t row) const {
    return std::any_of(terms_.begin(), terms_.end(), [row](const ResidualTerm& term) {
      return std::find(term.rows.begin(), term.rows.end(), row) != term.rows.end();
    });
  }

  void add(int64_t row, int64_t position, int64_t channel, int64_t count, Stored* x) const {
    float sums[kChannels];
    for (int64_t c = 0; c < count; ++c) sums[c] = Element::widen(x[c]);
    for (const ResidualTerm& term : terms_) {
      for (size_t i = 0; i < term.rows.size(); ++i) {
        if (term.rows[i] != row) continue;
        const auto place = static_cast<int64_t>(i);
        const float factor =
            term.scale[i] * (term.mask == nullptr ? 1.0f : term.mask[place * term.mask_stride + position]);
        const auto* const values = static_cast<const Stored*>(term.values) + place * term.row_stride +
                                   position * term.position_stride + channel;
        for (int64_t c = 0; c < count; ++c) sums[c] += factor * Element::widen(values[c]);
      }
    }
    for (int64_t c = 0; c < count; ++c) x[c] = Element::narrow(sums[c]);
  }

  const ResidualImage& image_;
  const std::vector<ResidualTerm>& terms_;
};

}  // namespace

ResidualImage residual_image(const Strided& x) {
  if (x.shape.size() != 3) throw std::invalid_argument("x is " + text(x.shape) + ", wants [R, positions, C]");
  check_floats("x", x);
  check_compact("x", x, x.dtype, x.shape);
  return {x.data, x.shape[0], x.shape[1], x.shape[2], x.dtype};
}

void residual_add(const ResidualImage& image, const std::vector<ResidualTerm>& terms, ThreadPool& pool) {
  const int64_t chunks = (image.positions + kPositions - 1) / kPositions;
  if (terms.empty()) return;
  pool.run(image.rows * chunks, [&](int64_t task) {
    const int64_t row = task / chunks, first = task % chunks * kPositions;
    if (image.dtype == Dtype::kFloat32) {
      Add<Float32>(image, terms).run(row, first);
    } else {
      Add<BFloat16>(image, terms).run(row, first);
    }
  });
}

}  // namespace bridle
