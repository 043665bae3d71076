// What this CPU can do at most: multiply-adds that never leave the registers, and a copy that never fits a cache.
//
//     ceiling THREADS        prints {"float32": GFLOP/s, "bfloat16": GFLOP/s, "amx_bfloat16": GFLOP/s, "copy": GB/s}
//
// Instructions that the CPU lacks are left out. Of several tries the best counts. Copied bytes are read and written.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "isa/amx.h"
#include "ops/gemm/amx_block.h"

namespace {

constexpr int kTries = 5;
constexpr int kSums = 16;                        // enough to hide the latency of a multiply-add, and all in registers
constexpr int64_t kTurns = 4'000'000;            // of kSums instructions
constexpr size_t kBytes = size_t{128} << 20;     // of each of a thread's two buffers
constexpr int64_t kVector = 16, kVectorYmm = 8;  // float32 sums of a register

std::atomic<float> sink;

__attribute__((target("avx2,fma"))) double fma_avx2(int64_t turns) {
  constexpr int kYmmSums = 12;
  __m256 sums[kYmmSums];
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  const __m256 a = _mm256_set1_ps(1e-9f), b = _mm256_set1_ps(1.5f);
  for (int64_t i = 0; i < turns; ++i) {
    for (__m256& sum : sums) sum = _mm256_fmadd_ps(a, b, sum);
  }
  for (const __m256& sum : sums) sink = _mm256_cvtss_f32(sum);
  return 2.0 * kVectorYmm * kYmmSums * static_cast<double>(turns);
}

__attribute__((target("avx512f"))) double fma_avx512(int64_t turns) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512 a = _mm512_set1_ps(1e-9f), b = _mm512_set1_ps(1.5f);
  for (int64_t i = 0; i < turns; ++i) {
    for (__m512& sum : sums) sum = _mm512_fmadd_ps(a, b, sum);
  }
  for (const __m512& sum : sums) sink = _mm512_cvtss_f32(sum);
  return 2.0 * kVector * kSums * static_cast<double>(turns);
}

__attribute__((target("avx512f,avx512bf16"))) double dot_avx512_bf16(int64_t turns) {
  __m512 sums[kSums];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1e-9f), _mm512_set1_ps(1e-9f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.5f), _mm512_set1_ps(1.5f));
  for (int64_t i = 0; i < turns; ++i) {
    for (__m512& sum : sums) sum = _mm512_dpbf16_ps(sum, a, b);
  }
  for (const __m512& sum : sums) sink = _mm512_cvtss_f32(sum);
  return 4.0 * kVector * kSums * static_cast<double>(turns);
}

double dot_amx_bf16(int64_t turns) {
  bridle::AmxBlock<2>::enter();
  for (int64_t i = 0; i < turns; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  bridle::AmxBlock<2>::leave();
  return 4.0 * (2.0 * 16 * 16 * 32) * static_cast<double>(turns);
}

// The work of all threads per second, best of several tries. work: called by every thread, says how much it did.
double best_rate(int threads, const std::function<double(int)>& work) {
  double best = 0.0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    std::vector<double> done(threads);
    std::atomic<int> ready = 0;
    std::vector<std::thread> workers;
    std::vector<double> seconds(threads);
    for (int t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        ++ready;
        while (ready < threads) std::this_thread::yield();
        const auto start = std::chrono::steady_clock::now();
        done[t] = work(t);
        seconds[t] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      });
    }
    for (std::thread& worker : workers) worker.join();
    double total = 0.0;
    for (const double part : done) total += part;
    best = std::max(best, total / *std::max_element(seconds.begin(), seconds.end()));
  }
  return best;
}

double copy_rate(int threads) {
  std::vector<std::vector<char>> from(threads, std::vector<char>(kBytes, 1)), to(from);
  return best_rate(threads, [&](int t) {
    std::memcpy(to[t].data(), from[t].data(), kBytes);
    sink = to[t][kBytes / 2];
    return 2.0 * static_cast<double>(kBytes);
  });
}

void print(const char* name, double rate, bool last) {
  std::printf("\"%s\": %.1f%s", name, rate / 1e9, last ? "}\n" : ", ");
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc == 2 ? std::atoi(argv[1]) : 0;
  if (threads < 1) {
    std::fprintf(stderr, "usage: ceiling THREADS\n");
    return 2;
  }
  std::printf("{");
  if (__builtin_cpu_supports("avx512f")) {
    print("float32", best_rate(threads, [](int) { return fma_avx512(kTurns); }), false);
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    print("float32", best_rate(threads, [](int) { return fma_avx2(kTurns); }), false);
  }
  if (__builtin_cpu_supports("avx512bf16")) {
    print("bfloat16", best_rate(threads, [](int) { return dot_avx512_bf16(kTurns); }), false);
  }
  if (bridle::amx_works()) {
    print("amx_bfloat16", best_rate(threads, [](int) { return dot_amx_bf16(kTurns); }), false);
  }
  print("copy", copy_rate(threads), true);
  return 0;
}
