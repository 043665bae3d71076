// Persistent threads that run the tasks of one op together: spin for the next op, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace bridle {

class ThreadPool {
 public:
  // Something that is called with the number of a task and lives as long as the call: no memory is allocated for it.
  class Task {
   public:
    template <class Function>
      requires(!std::is_same_v<Function, Task>)
    Task(const Function& function)
        : function_(&function), call_([](const void* f, int64_t task) { (*static_cast<const Function*>(f))(task); }) {}

    void operator()(int64_t task) const { call_(function_, task); }

   private:
    const void* function_;
    void (*call_)(const void*, int64_t);
  };

  // threads: with the caller's own; at least 1. pinned: every other thread stays on a CPU of its own, where the process
  // may use as many as there are threads; the caller's thread is never touched.
  explicit ThreadPool(int threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(0) ... task(count - 1), each once, and returns when all have returned. Thread w has the tasks from
  // w * count / threads on: which thread runs what never depends on timing. Where another caller has the pool, this
  // one runs its tasks alone. Tasks round to nearest and keep subnormal numbers, whatever the caller's thread does
  // before and afterwards. The first exception of a task is thrown here, after all threads have ended; it costs the
  // thread's other tasks. A task must not call run itself, and a pool does not survive fork().
  void run(int64_t count, const Task& task);

 private:
  void start(int threads, bool pinned);
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
