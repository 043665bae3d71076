#include <chrono>
#include <stdexcept>
#include <string>
#include <utility>

#include "bridle/plan.h"

namespace bridle {

Frame::Frame(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {
  if (!plan_->finished_) throw std::logic_error("frame: the plan is not finished");
  arena_ = AlignedBuffer(plan_->arena_bytes());
  bound_.resize(plan_->attention_ports_);
  own_.resize(plan_->row_ports_);
  residuals_.resize(plan_->residual_ports_);
  steps_.reserve(plan_->nodes_.size());
  for (const Plan::Node& node : plan_->nodes_) steps_.push_back(node.instantiate(*this));
}

std::byte* Frame::at(int32_t buffer) const {
  const Plan::Buffer& b = plan_->buffers_.at(buffer);
  // Ops never write constants: Plan::add refuses it.
  if (b.constant != nullptr) return static_cast<std::byte*>(const_cast<void*>(b.constant));
  return arena_.data() + b.offset;
}

size_t Frame::bytes() const {
  size_t total = arena_.bytes() + own_memory_.bytes();
  for (const std::unique_ptr<Site>& site : bound_) total += site->memory.bytes();
  return total;
}

void Frame::check_port(int32_t port, size_t count) const {
  if (port < 0 || port >= static_cast<int32_t>(count)) {
    throw std::invalid_argument("frame: port is " + std::to_string(port) + ", wants one of " + std::to_string(count));
  }
}

void Frame::bind_segments(int32_t port, std::vector<AttentionSegment> segments) {
  check_port(port, bound_.size());
  Site& site = *bound_[port];
  site.arguments.segments = std::move(segments);
  site.prepared = std::make_unique<PreparedAttention>(site.arguments, site.isa);
  site.memory.reserve(site.prepared->packed_bytes());
  site.packed = false;
}

void Frame::bind_residuals(int32_t port, std::vector<ResidualTerm> terms) {
  check_port(port, residuals_.size());
  residuals_[port] = std::move(terms);
}

void Frame::bind_rows(int32_t port, std::vector<int32_t> rows) {
  check_port(port, own_.size());
  for (const std::unique_ptr<Site>& site : own_[port]) {
    AttentionSegment& segment = site->arguments.segments.front();
    if (segment.q_rows == rows) continue;
    if (segment.q_rows.size() != rows.size()) {
      throw std::invalid_argument("frame: rows has " + std::to_string(rows.size()) + " numbers, wants " +
                                  std::to_string(segment.q_rows.size()));
    }
    segment.q_rows = segment.k_rows = rows;
    prepare_own(*site);
  }
}

void Frame::prepare_own(Site& site) {
  site.prepared = std::make_unique<PreparedAttention>(site.arguments, site.isa);
  own_memory_.reserve(site.prepared->packed_bytes());
}

Plan::Step Frame::attend_bound(int32_t port, AttentionArguments arguments, Isa isa) {
  bound_.at(port) = std::make_unique<Site>(Site{std::move(arguments), isa, nullptr, {}, false});
  return [site = bound_[port].get()](ThreadPool& pool) {
    if (site->prepared == nullptr) throw std::logic_error("frame: an attention has no segments");
    if (!std::exchange(site->packed, true)) site->prepared->pack(site->memory.data(), pool);
    site->prepared->attend(pool);
  };
}

Plan::Step Frame::attend_own(int32_t row_port, AttentionArguments arguments, Isa isa) {
  auto site = std::make_unique<Site>(Site{std::move(arguments), isa, nullptr, {}, false});
  prepare_own(*site);
  own_.at(row_port).push_back(std::move(site));
  return [this, site = own_[row_port].back().get()](ThreadPool& pool) {
    site->prepared->pack(own_memory_.data(), pool);
    site->prepared->attend(pool);
  };
}

void Frame::run(ThreadPool& pool) const {
  for (const Plan::Step& step : steps_) step(pool);
}

std::vector<double> Frame::profile(ThreadPool& pool) const {
  std::vector<double> seconds;
  for (const Plan::Step& step : steps_) {
    const auto start = std::chrono::steady_clock::now();
    step(pool);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return seconds;
}

}  // namespace bridle
