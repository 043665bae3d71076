// Every task once, whoever calls; exceptions arrive; callers do not wait for each other.
#include "bridle/thread_pool.h"

#include <sched.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "tests/expect.h"

namespace bridle {
namespace {

void every_task_runs_once() {
  for (const int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    for (int64_t count = 0; count < 40; ++count) {
      std::vector<int> calls(count, 0);
      pool.run(count, [&](int64_t task) { ++calls[task]; });
      for (const int c : calls) EXPECT(c == 1);
    }
  }
}

void callers_share_a_pool() {
  ThreadPool pool(3);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int turn = 0; turn < 200; ++turn) {
        std::vector<int64_t> squares(17);
        pool.run(17, [&](int64_t task) { squares[task] = task * task; });
        int64_t sum = 0;
        for (const int64_t square : squares) sum += square;
        total += sum;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT(total == 4 * 200 * 1496);
}

void exceptions_arrive() {
  ThreadPool pool(3);
  for (int turn = 0; turn < 50; ++turn) {
    bool thrown = false;
    try {
      pool.run(9, [](int64_t task) {
        if (task == 7) throw std::runtime_error("seven");
      });
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    EXPECT(thrown);
    std::atomic<int> done{0};
    pool.run(9, [&](int64_t) { ++done; });
    EXPECT(done == 9);
  }
}

#if defined(__SSE__)

// Flushes subnormal numbers in and out, and rounds to zero; exceptions stay masked.
constexpr unsigned kUnusual = 0xFFC0, kUsual = 0x1F80;

void check_tasks_round_as_usual(ThreadPool& pool, int64_t count) {
  std::vector<unsigned> seen(count);
  pool.run(count, [&](int64_t task) { seen[task] = _mm_getcsr(); });
  EXPECT(std::all_of(seen.begin(), seen.end(), [](unsigned control) { return control == kUsual; }));
  EXPECT(_mm_getcsr() == kUnusual);
}

void tasks_round_as_usual() {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(kUnusual);
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);  // Its threads begin with their maker's control word.
    for (const int64_t count : {1, 7}) check_tasks_round_as_usual(pool, count);
    try {
      pool.run(7, [](int64_t) { throw std::runtime_error("every one"); });
    } catch (const std::runtime_error&) {
    }
    EXPECT(_mm_getcsr() == kUnusual);
  }
  _mm_setcsr(before);
}

#else

void tasks_round_as_usual() {}

#endif

// How many CPUs the thread of each of `threads` tasks may use.
std::vector<int> allowed_of_tasks(ThreadPool& pool) {
  std::vector<int> allowed(pool.threads());
  pool.run(pool.threads(), [&](int64_t task) {
    cpu_set_t set;
    EXPECT(sched_getaffinity(0, sizeof set, &set) == 0);
    allowed[task] = CPU_COUNT(&set);
  });
  return allowed;
}

void pinned_threads_stay_where_there_is_room() {
  cpu_set_t set;
  EXPECT(sched_getaffinity(0, sizeof set, &set) == 0);
  const int cpus = CPU_COUNT(&set);
  ThreadPool fits(cpus, true), wanders(cpus, false), crowded(cpus + 1, true);
  const std::vector<int> pinned = allowed_of_tasks(fits);
  EXPECT(pinned[0] == cpus);
  EXPECT(std::all_of(pinned.begin() + 1, pinned.end(), [](int count) { return count == 1; }));
  for (const int count : allowed_of_tasks(wanders)) EXPECT(count == cpus);
  for (const int count : allowed_of_tasks(crowded)) EXPECT(count == cpus);
}

}  // namespace
}  // namespace bridle

int main() {
  bridle::every_task_runs_once();
  bridle::callers_share_a_pool();
  bridle::exceptions_arrive();
  bridle::tasks_round_as_usual();
  bridle::pinned_threads_stay_where_there_is_room();
}
