// Token embedding, and the feature of the token that ends a text.
#pragma once

#include <cstdint>
#include <optional>

#include "bridle/strided.h"
#include "bridle/thread_pool.h"

namespace bridle {

// out[r, n] = tokens[ids[r, n]] + positions[n], float32 or bfloat16. A float32 table of a bfloat16 sum is rounded where
// it is read: few rows of it are, so nobody converts and keeps all of them.
struct Embedding {
  const int64_t* ids = nullptr;     // [rows, length]
  const void* tokens = nullptr;     // [vocabulary, channels]
  const void* positions = nullptr;  // [length or more, channels]
  void* out = nullptr;              // [rows, length, channels]
  int64_t rows = 0, length = 0, channels = 0, vocabulary = 0;
  Dtype dtype = Dtype::kFloat32;
  Dtype table = Dtype::kFloat32;  // of tokens
};

// Throws std::invalid_argument for what does not fit.
Embedding embedding_of(const Strided& ids, const Strided& tokens, const Strided& positions, const Strided& out);

// Throws std::out_of_range for an id that the vocabulary lacks; nothing is written then.
void embedding(const Embedding& arguments, ThreadPool& pool);

// out[r] = x[r, n], n the place of the first `end` among ids[r], 0 where there is none; without `end` the place of the
// largest id.
struct EndToken {
  const void* x = nullptr;       // [rows, length, channels]
  const int64_t* ids = nullptr;  // [rows, length]
  void* out = nullptr;           // [rows, channels]
  int64_t rows = 0, length = 0;
  int64_t channel_bytes = 0;  // of all channels
  std::optional<int64_t> end;
};

// Throws std::invalid_argument for what does not fit.
EndToken end_token_of(const Strided& x, const Strided& ids, const Strided& out, std::optional<int64_t> end);

void end_token(const EndToken& arguments, ThreadPool& pool);

}  // namespace bridle
