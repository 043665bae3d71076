// A network recorded once: its ops in order, over buffers of one arena whose size is known before it is allocated.
//
// A plan holds no activations. Frames do: each has its own arena and whatever one evaluation at a time needs, so frames
// of one plan run side by side. Running a frame allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bridle/aligned_buffer.h"
#include "bridle/attention.h"
#include "bridle/residual_add.h"
#include "bridle/thread_pool.h"

namespace bridle {

class Frame;

class Plan {
 public:
  // What an op does with a frame's memory, every pointer known.
  using Step = std::function<void(ThreadPool&)>;
  using Instantiate = std::function<Step(Frame&)>;

  // A place of the arena, written by ops; its first byte is aligned to a cache line.
  int32_t add_buffer(size_t bytes);
  // A buffer that is written from outside, before a run, and keeps its contents between runs.
  int32_t add_input(size_t bytes);
  // Memory that is not the arena's and outlives the plan.
  int32_t add_constant(const void* data);
  // Its contents are read from outside, after a run.
  void keep(int32_t buffer);

  // Attentions whose segments a frame is given, residuals likewise, and row numbers for the self-attentions of a level.
  int32_t add_attention_port() { return attention_ports_++; }
  int32_t add_residual_port() { return residual_ports_++; }
  int32_t add_row_port() { return row_ports_++; }

  // Appends an op. Throws std::invalid_argument for a read of something that no op before it wrote.
  void add(std::string name, std::vector<int32_t> reads, std::vector<int32_t> writes, Instantiate instantiate);

  // Places the buffers; nothing can be added afterwards.
  void finish();

  size_t arena_bytes() const { return arena_bytes_; }
  // What all buffers would need if none shared memory.
  size_t total_bytes() const;
  size_t nodes() const { return nodes_.size(); }
  const std::string& node_name(size_t index) const { return nodes_[index].name; }

 private:
  friend class Frame;

  struct Buffer {
    size_t bytes = 0;
    const void* constant = nullptr;
    int64_t first = -1, last = -1;  // nodes between which it holds something; -1 = never
    size_t offset = 0;
  };
  struct Node {
    std::string name;
    Instantiate instantiate;
  };

  Buffer& buffer(int32_t index);
  void place(Buffer& buffer, std::vector<const Buffer*>& placed);

  std::vector<Buffer> buffers_;
  std::vector<Node> nodes_;
  int32_t attention_ports_ = 0, residual_ports_ = 0, row_ports_ = 0;
  size_t arena_bytes_ = 0;
  bool finished_ = false;
};

class Frame {
 public:
  explicit Frame(std::shared_ptr<const Plan> plan);
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  std::byte* at(int32_t buffer) const;
  const Plan& plan() const { return *plan_; }
  // What it holds: the arena, and the packed keys and values of the attentions, which grow with what is bound.
  size_t bytes() const;

  // The segments of a port from now on; everything that they point to must live until they are replaced.
  void bind_segments(int32_t port, std::vector<AttentionSegment> segments);
  void bind_residuals(int32_t port, std::vector<ResidualTerm> terms);
  // The rows whose queries and keys each row's self-attention reads.
  void bind_rows(int32_t port, std::vector<int32_t> rows);

  // Throws std::logic_error where a port was never bound.
  void run(ThreadPool& pool) const;

  // Seconds of each op in one run, for those who measure.
  std::vector<double> profile(ThreadPool& pool) const;

  // For ops that are instantiated in this frame.
  Plan::Step attend_bound(int32_t port, AttentionArguments arguments, Isa isa);
  Plan::Step attend_own(int32_t row_port, AttentionArguments arguments, Isa isa);
  const std::vector<ResidualTerm>& residuals(int32_t port) const { return residuals_[port]; }

 private:
  struct Site {
    AttentionArguments arguments;
    Isa isa;
    std::unique_ptr<PreparedAttention> prepared;
    AlignedBuffer memory;  // of keys and values that stay packed
    bool packed = false;
  };

  void check_port(int32_t port, size_t count) const;
  void prepare_own(Site& site);

  std::shared_ptr<const Plan> plan_;
  AlignedBuffer arena_;
  std::vector<std::unique_ptr<Site>> bound_;             // by attention port
  std::vector<std::vector<std::unique_ptr<Site>>> own_;  // by row port
  AlignedBuffer own_memory_;                             // of the own attention that runs: packed anew in every run
  std::vector<std::vector<ResidualTerm>> residuals_;
  std::vector<Plan::Step> steps_;
};

}  // namespace bridle
