#include "bridle/thread_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

#include "plan/float_control.h"

namespace bridle {
namespace {

// About 50 microseconds: longer than the gaps between the ops of a step, shorter than anybody would notice.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

#if defined(__linux__)

// The CPUs that this thread may use, in the system's order; none where it does not say.
std::vector<int> allowed_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {};
  std::vector<int> found;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) found.push_back(cpu);
  }
  return found;
}

// Without effect where the system refuses: a thread that wanders computes the same.
void pin(std::thread& thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);
}

#else

std::vector<int> allowed_cpus() { return {}; }
void pin(std::thread&, int) {}

#endif

}  // namespace

ThreadPool::ThreadPool(int threads, bool pinned) {
  if (threads < 1)
    throw std::invalid_argument("ThreadPool: threads is " + std::to_string(threads) + ", wants 1 or more");
  // All of them exist before any looks at how many there are.
  const std::lock_guard<std::mutex> starting(caller_);
  try {
    start(threads, pinned);
  } catch (...) {
    stop();
    throw;
  }
}

// The first CPU is left to the caller.
void ThreadPool::start(int threads, bool pinned) {
  const std::vector<int> cpus = pinned ? allowed_cpus() : std::vector<int>();
  for (int worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { work(worker); });
    if (static_cast<size_t>(threads) <= cpus.size()) pin(workers_.back(), cpus[worker]);
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, const Task& task) {
  std::unique_lock<std::mutex> mine(caller_, std::try_to_lock);
  if (!mine || workers_.empty() || count < 2) {
    const DefaultFloatControl control;
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  task_ = &task;
  count_ = count;
  error_ = nullptr;
  busy_.store(static_cast<int>(workers_.size()));
  generation_.fetch_add(1);
  generation_.notify_all();
  run_share(0);
  for (int left = busy_.load(), spins = 0; left > 0; left = busy_.load()) {
    if (++spins < kSpins) {
      pause();
    } else {
      busy_.wait(left);
    }
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work(int worker) {
  for (uint32_t seen = 0;;) {
    wait_for(seen);
    ++seen;
    if (stop_.load()) return;
    run_share(worker);
    if (busy_.fetch_sub(1) == 1) busy_.notify_one();
  }
}

void ThreadPool::run_share(int worker) noexcept {
  const DefaultFloatControl control;
  try {
    const int64_t end = (worker + 1) * count_ / threads();
    for (int64_t i = worker * count_ / threads(); i < end; ++i) (*task_)(i);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(error_lock_);
    if (!error_) error_ = std::current_exception();
  }
}

void ThreadPool::wait_for(uint32_t seen) {
  for (int spins = 0; generation_.load() == seen && spins < kSpins; ++spins) pause();
  while (generation_.load() == seen) generation_.wait(seen);
}

}  // namespace bridle
