// Persistent threads that run the tasks of one op together: spin for the next op, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace bridle {

class ThreadPool {
 public:
  using Task = std::function<void(int64_t task)>;

  // threads: with the caller's own; at least 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0) ... task(count - 1), each once, and returns when all have returned. Thread w has the tasks from
  // w * count / threads on: which thread runs what never depends on timing. Where another caller has the pool, this
  // one runs its tasks alone. The first exception of a task is thrown here, after all threads have ended; it costs the
  // thread's other tasks. A task must not call run itself, and a pool does not survive fork().
  void run(int64_t count, const Task& task);

 private:
  void stop();
  void work(int worker);
  void run_share(int worker) noexcept;
  void wait_for(uint32_t seen);

  std::vector<std::thread> workers_;
  std::mutex caller_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  const Task* task_ = nullptr;
  int64_t count_ = 0;
  std::mutex error_lock_;
  std::exception_ptr error_;
};

}  // namespace bridle
