#include "bridle/time_embedding.h"

#include <cmath>
#include <stdexcept>

#include "bridle/checks.h"
#include "ops/element.h"

namespace bridle {
namespace {

template <class Element>
void embed(const TimeEmbedding& a, int64_t place) {
  const int64_t half = a.channels / 2;
  auto* const out = static_cast<typename Element::Stored*>(a.out) + place * a.channels;
  auto* const sines = out + (a.cosines_first ? half : 0);
  auto* const cosines = out + (a.cosines_first ? 0 : half);
  for (int64_t i = 0; i < half; ++i) {
    const double angle = a.t[place] * a.frequencies[i];
    sines[i] = Element::narrow(static_cast<float>(std::sin(angle)));
    cosines[i] = Element::narrow(static_cast<float>(std::cos(angle)));
  }
  if (a.channels % 2 != 0) out[a.channels - 1] = Element::narrow(0.0f);
}

}  // namespace

TimeEmbedding time_embedding_of(const Strided& t, const Strided& frequencies, const Strided& out, bool cosines_first) {
  if (t.shape.size() != 1) throw std::invalid_argument("t is " + text(t.shape) + ", wants [S]");
  if (out.shape.size() != 2) throw std::invalid_argument("out is " + text(out.shape) + ", wants [S, C]");
  check_floats("out", out);
  const int64_t count = t.shape[0], channels = out.shape[1];
  check_compact("t", t, Dtype::kFloat32, {count});
  check_compact("frequencies", frequencies, Dtype::kFloat32, {channels / 2});
  check_compact("out", out, out.dtype, {count, channels});
  return {static_cast<const float*>(t.data),
          static_cast<const float*>(frequencies.data),
          out.data,
          count,
          channels,
          cosines_first,
          out.dtype};
}

void time_embedding(const TimeEmbedding& a, ThreadPool& pool) {
  pool.run(a.count, [&](int64_t place) {
    if (a.dtype == Dtype::kFloat32) {
      embed<Float32>(a, place);
    } else {
      embed<BFloat16>(a, place);
    }
  });
}

}  // namespace bridle
