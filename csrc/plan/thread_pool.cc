#include "bridle/thread_pool.h"

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace bridle {
namespace {

// About 50 microseconds: longer than the gaps between the ops of a step, shorter than anybody would notice.
constexpr int kSpins = 4000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1)
    throw std::invalid_argument("ThreadPool: threads is " + std::to_string(threads) + ", wants 1 or more");
  // All of them exist before any looks at how many there are.
  const std::lock_guard<std::mutex> starting(caller_);
  try {
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { work(worker); });
  } catch (...) {
    stop();
    throw;
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
