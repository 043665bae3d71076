// Sinusoids of time steps (Vaswani et al., 2017, section 3.5).
#pragma once

#include <cstdint>

#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// [sin | cos] of t * frequencies, or [cos | sin]; an odd `channels` ends with a zero. Angles are rounded to float32, as
// published models were trained; their sines are exact to the last place.
struct TimeEmbedding {
  const float* t = nullptr;            // [count]
  const float* frequencies = nullptr;  // [channels / 2]
  void* out = nullptr;                 // [count, channels] of float32 or bfloat16
  int64_t count = 0, channels = 0;
  bool cosines_first = false;
  Dtype dtype = Dtype::kFloat32;
};

// t: [S]. frequencies: [C / 2]. out: [S, C]. Throws std::invalid_argument for what does not fit.
TimeEmbedding time_embedding_of(const Strided& t, const Strided& frequencies, const Strided& out, bool cosines_first);

void time_embedding(const TimeEmbedding& arguments, ThreadPool& pool);

}  // namespace bridle
