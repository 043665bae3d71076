#include "bridle/guide_step_blend.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>

#include "ops/guide_step_blend/row_kernels.h"

namespace bridle {
namespace {

const RowKernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  if (contains(isa, Isa::kAvx512)) return avx512_row_kernels();
  if (contains(isa, Isa::kAvx2)) return avx2_row_kernels();
#endif
  static_cast<void>(isa);
  return scalar_row_kernels();
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void require_shape(const char* name, const Strided& tensor, const std::vector<int64_t>& wanted) {
  if (tensor.shape != wanted) {
    throw std::invalid_argument(std::string("guide_step_blend: ") + name + " is " + shape_text(tensor.shape) +
                                ", wants " + shape_text(wanted));
  }
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument("guide_step_blend: " + what);
}

struct Sizes {
  int64_t samples, channels, height, width;   // of the latents
  int64_t rows, window_height, window_width;  // of eps
  int64_t history;
};

Sizes sizes_of(const GuideStepBlend& a) {
  require(a.eps.shape.size() == 4, "eps wants 4 dimensions");
  require(a.latents.shape.size() == 4, "latents wants 4 dimensions");
  const int64_t history = a.history ? (a.history.shape.size() == 5 ? a.history.shape[1] : -1) : 0;
  return {a.latents.shape[0], a.latents.shape[1], a.latents.shape[2], a.latents.shape[3],
          a.eps.shape[0],     a.eps.shape[2],     a.eps.shape[3],     history};
}

void check_shapes(const GuideStepBlend& a, const Sizes& s) {
  const std::vector<int64_t> image = {s.samples, s.channels, s.height, s.width};
  require_shape("eps", a.eps, {s.rows, s.channels, s.window_height, s.window_width});
  if (a.history) require_shape("history", a.history, {s.samples, s.history, s.channels, s.height, s.width});
  if (a.noise) require_shape("noise", a.noise, image);
  if (a.weights) {
    require(a.weights.shape.size() == 3, "weights wants 3 dimensions");
    require_shape("weights", a.weights, {a.weights.shape[0], s.window_height, s.window_width});
  }
  if (a.known) {
    require_shape("known", a.known, image);
    require_shape("known_noise", a.known_noise, image);
    require_shape("mask", a.mask, {s.samples, 1, s.height, s.width});
    require(static_cast<int64_t>(a.has_known.size()) == s.samples, "has_known wants one entry per sample");
    require(static_cast<int64_t>(a.known_coefficients.size()) == 2 * s.samples, "known_coefficients wants [P, 2]");
  }
  require(static_cast<int64_t>(a.coefficients.size()) == s.samples * (3 + s.history), "coefficients wants [P, 3 + K]");
  require_shape("out", a.out, image);
  require_shape("model_output", a.model_output, image);
}

void check_terms(const GuideStepBlend& a, const Sizes& s) {
  const size_t terms = a.term_row.size();
  require(static_cast<int64_t>(a.term_start.size()) == s.samples + 1, "term_start wants [P + 1]");
  require(a.term_start.front() == 0 && a.term_start.back() == static_cast<int64_t>(terms) &&
              std::is_sorted(a.term_start.begin(), a.term_start.end()),
          "term_start wants rising offsets from 0 to the number of terms");
  for (const size_t size : {a.term_coefficient.size(), a.term_weight.size(), a.term_top.size(), a.term_left.size()}) {
    require(size == terms, "term arrays want equal lengths");
  }
  const int64_t weights = a.weights ? a.weights.shape[0] : 0;
  for (size_t t = 0; t < terms; ++t) {
    require(a.term_row[t] >= 0 && a.term_row[t] < s.rows, "term_row has an index outside eps");
    require(a.term_weight[t] >= -1 && a.term_weight[t] < weights, "term_weight has an index outside weights");
    require(a.term_top[t] >= 0 && a.term_top[t] + s.window_height <= s.height, "term_top leaves the latents");
    require(a.term_left[t] >= 0 && a.term_left[t] < std::max<int64_t>(s.width, 1), "term_left leaves the latents");
  }
  require(terms == 0 || s.window_width <= s.width, "eps is wider than the latents");
}

constexpr int64_t kLongRow = 1024;  // floats: what a sample's pass keeps stays in L1

bool lines_follow_each_other(const Strided& tensor) {
  const size_t last = tensor.shape.size() - 1;
  return !tensor || (tensor.strides[last] == 1 && tensor.strides[last - 1] == tensor.shape[last]);
}

// How many lines of all images can be taken for one: where each window is the whole image, every element depends on its
// own place alone.
int64_t lines_to_join(const GuideStepBlend& a, const Sizes& s) {
  const auto zero = [](int32_t offset) { return offset == 0; };
  const Strided* const tensors[] = {&a.eps,   &a.weights,     &a.latents, &a.history, &a.noise,
                                    &a.known, &a.known_noise, &a.mask,    &a.out,     &a.model_output};
  if (s.window_height != s.height || s.window_width != s.width || s.width < 1 ||
      !std::all_of(a.term_top.begin(), a.term_top.end(), zero) ||
      !std::all_of(a.term_left.begin(), a.term_left.end(), zero) ||
      !std::all_of(std::begin(tensors), std::end(tensors), [](auto t) { return lines_follow_each_other(*t); })) {
    return 1;
  }
  int64_t lines = std::clamp<int64_t>(kLongRow / s.width, 1, std::max<int64_t>(s.height, 1));
  while (s.height % lines != 0) --lines;
  return lines;
}

GuideStepBlend with_long_rows(GuideStepBlend a, int64_t lines) {
  for (Strided* const tensor : {&a.eps, &a.weights, &a.latents, &a.history, &a.noise, &a.known, &a.known_noise, &a.mask,
                                &a.out, &a.model_output}) {
    if (!*tensor) continue;
    const size_t last = tensor->shape.size() - 1;
    tensor->shape[last - 1] /= lines;
    tensor->shape[last] *= lines;
    tensor->strides[last - 1] *= lines;
  }
  return a;
}

// One sample's work; owns the row buffers. No state is shared between samples.
class SamplePass {
 public:
  SamplePass(const GuideStepBlend& a, const Sizes& s, const RowKernels& k)
      : a_(a), s_(s), k_(k), guided_(s.width), stepped_(s.width), level_(s.width), scratch_(row()), weight_(row()) {}

  void run(int64_t p) {
    for (int64_t c = 0; c < s_.channels; ++c) {
      for (int64_t y = 0; y < s_.height; ++y) run_row(p, c, y);
    }
  }

 private:
  size_t row() const { return static_cast<size_t>(std::max(s_.width, s_.window_width)); }

  void run_row(int64_t p, int64_t c, int64_t y) {
    guide(p, c, y);
    step(p, c, y);
    if (a_.known && a_.has_known[p] != 0) blend(p, c, y);
    write(a_.model_output, {p, c, y}, guided_.data());
    write(a_.out, {p, c, y}, stepped_.data());
  }

  void guide(int64_t p, int64_t c, int64_t y) {
    std::fill(guided_.begin(), guided_.end(), 0.0f);
    for (int32_t t = a_.term_start[p]; t < a_.term_start[p + 1]; ++t) {
      const int64_t line = y - a_.term_top[t];
      if (line >= 0 && line < s_.window_height) add_term(t, c, line);
    }
  }

  void add_term(int32_t t, int64_t c, int64_t line) {
    const float* term = read(a_.eps, {a_.term_row[t], c, line}, s_.window_width, scratch_.data());
    const float* weight = nullptr;
    if (a_.term_weight[t] >= 0) weight = read(a_.weights, {a_.term_weight[t], line}, s_.window_width, weight_.data());
    const int64_t left = a_.term_left[t];
    const int64_t until_edge = std::min(s_.window_width, s_.width - left);
    add_span(guided_.data() + left, term, weight, a_.term_coefficient[t], until_edge);
    if (until_edge < s_.window_width) {
      const float* rest = weight == nullptr ? nullptr : weight + until_edge;
      add_span(guided_.data(), term + until_edge, rest, a_.term_coefficient[t], s_.window_width - until_edge);
    }
  }

  void add_span(float* total, const float* term, const float* weight, float coefficient, int64_t n) {
    if (weight == nullptr) {
      k_.accumulate(total, term, coefficient, n);
    } else {
      k_.accumulate_weighted(total, term, weight, coefficient, n);
    }
  }

  void step(int64_t p, int64_t c, int64_t y) {
    const float* coefficients = a_.coefficients.data() + p * (3 + s_.history);
    std::fill(stepped_.begin(), stepped_.end(), 0.0f);
    add_to(stepped_, a_.latents, {p, c, y}, coefficients[0]);
    if (coefficients[1] != 0.0f) k_.accumulate(stepped_.data(), guided_.data(), coefficients[1], s_.width);
    if (a_.noise) add_to(stepped_, a_.noise, {p, c, y}, coefficients[2]);
    for (int64_t k = 0; k < s_.history; ++k) add_to(stepped_, a_.history, {p, k, c, y}, coefficients[3 + k]);
  }

  void blend(int64_t p, int64_t c, int64_t y) {
    const float* coefficients = a_.known_coefficients.data() + 2 * p;
    std::fill(level_.begin(), level_.end(), 0.0f);
    add_to(level_, a_.known, {p, c, y}, coefficients[0]);
    add_to(level_, a_.known_noise, {p, c, y}, coefficients[1]);
    k_.blend(stepped_.data(), read(a_.mask, {p, 0, y}, s_.width, scratch_.data()), level_.data(), s_.width);
  }

  // A coefficient of 0 skips its term: 0 * Inf would be NaN.
  void add_to(std::vector<float>& total, const Strided& tensor, std::initializer_list<int64_t> index,
              float coefficient) {
    if (coefficient == 0.0f) return;
    k_.accumulate(total.data(), read(tensor, index, s_.width, scratch_.data()), coefficient, s_.width);
  }

  static int64_t offset(const Strided& tensor, std::initializer_list<int64_t> index) {
    int64_t at = 0;
    size_t dimension = 0;
    for (const int64_t i : index) at += i * tensor.strides[dimension++];
    return at;
  }

  // The row at `index` as contiguous floats: in place where it is that already, else through `buffer`.
  const float* read(const Strided& tensor, std::initializer_list<int64_t> index, int64_t n, float* buffer) {
    const int64_t stride = tensor.strides.back();
    if (tensor.dtype == Dtype::kFloat32) {
      const float* from = static_cast<const float*>(tensor.data) + offset(tensor, index);
      if (stride == 1) return from;
      for (int64_t i = 0; i < n; ++i) buffer[i] = from[i * stride];
      return buffer;
    }
    const uint16_t* from = static_cast<const uint16_t*>(tensor.data) + offset(tensor, index);
    const auto widen = tensor.dtype == Dtype::kFloat16 ? k_.widen_half : k_.widen_bfloat16;
    if (stride == 1) {
      widen(buffer, from, n);
    } else {
      for (int64_t i = 0; i < n; ++i) widen(buffer + i, from + i * stride, 1);
    }
    return buffer;
  }

  void write(const Strided& tensor, std::initializer_list<int64_t> index, const float* row) {
    float* to = static_cast<float*>(tensor.data) + offset(tensor, index);
    const int64_t stride = tensor.strides.back();
    for (int64_t i = 0; i < s_.width; ++i) to[i * stride] = row[i];
  }

  const GuideStepBlend& a_;
  const Sizes& s_;
  const RowKernels& k_;
  std::vector<float> guided_, stepped_, level_, scratch_, weight_;
};

}  // namespace

void guide_step_blend(const GuideStepBlend& arguments, Isa isa) {
  const Sizes sizes = sizes_of(arguments);
  check_shapes(arguments, sizes);
  check_terms(arguments, sizes);
  const GuideStepBlend joined = with_long_rows(arguments, lines_to_join(arguments, sizes));
  const Sizes long_rows = sizes_of(joined);
  SamplePass pass(joined, long_rows, kernels_for(isa));
  for (int64_t p = 0; p < sizes.samples; ++p) pass.run(p);
}

}  // namespace bridle
