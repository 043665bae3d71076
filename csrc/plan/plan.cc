#include "bridle/plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

namespace bridle {
namespace {

constexpr int64_t kAlways = std::numeric_limits<int64_t>::max();

size_t aligned(size_t bytes) {
  constexpr size_t kLine = AlignedBuffer::kAlignment;
  return (bytes + kLine - 1) / kLine * kLine;
}

}  // namespace

int32_t Plan::add_buffer(size_t bytes) {
  buffers_.push_back({aligned(bytes), nullptr, -1, -1, 0});
  return static_cast<int32_t>(buffers_.size()) - 1;
}

int32_t Plan::add_input(size_t bytes) {
  buffers_.push_back({aligned(bytes), nullptr, 0, kAlways, 0});
  return static_cast<int32_t>(buffers_.size()) - 1;
}

int32_t Plan::add_constant(const void* data) {
  buffers_.push_back({0, data, 0, kAlways, 0});
  return static_cast<int32_t>(buffers_.size()) - 1;
}

Plan::Buffer& Plan::buffer(int32_t index) {
  if (index < 0 || index >= static_cast<int32_t>(buffers_.size())) {
    throw std::invalid_argument("plan: buffer is " + std::to_string(index) + ", wants one of " +
                                std::to_string(buffers_.size()));
  }
  return buffers_[index];
}

void Plan::keep(int32_t index) { buffer(index).last = kAlways; }

void Plan::add(std::string name, std::vector<int32_t> reads, std::vector<int32_t> writes, Instantiate instantiate) {
  if (finished_) throw std::logic_error("plan: it is finished");
  const auto node = static_cast<int64_t>(nodes_.size());
  for (const int32_t read : reads) {
    Buffer& found = buffer(read);
    if (found.first < 0) throw std::invalid_argument("plan: " + name + " reads what no op has written");
    found.last = std::max(found.last, node);
  }
  for (const int32_t write : writes) {
    Buffer& found = buffer(write);
    if (found.constant != nullptr) throw std::invalid_argument("plan: " + name + " writes a constant");
    if (found.first < 0) found.first = node;
    found.last = std::max(found.last, node);
  }
  nodes_.push_back({std::move(name), std::move(instantiate)});
}

// The lowest place that no buffer has whose life overlaps.
void Plan::place(Buffer& wanted, std::vector<const Buffer*>& placed) {
  std::vector<std::pair<size_t, size_t>> taken;
  for (const Buffer* other : placed) {
    if (other->first <= wanted.last && wanted.first <= other->last) {
      taken.emplace_back(other->offset, other->offset + other->bytes);
    }
  }
  std::sort(taken.begin(), taken.end());
  wanted.offset = 0;
  for (const auto& [begin, end] : taken) {
    if (begin >= wanted.offset + wanted.bytes) break;
    wanted.offset = std::max(wanted.offset, end);
  }
  placed.push_back(&wanted);
  arena_bytes_ = std::max(arena_bytes_, wanted.offset + wanted.bytes);
}

void Plan::finish() {
  if (finished_) return;
  std::vector<Buffer*> largest_first;
  for (Buffer& b : buffers_) {
    if (b.constant == nullptr && b.first >= 0) largest_first.push_back(&b);
  }
  std::stable_sort(largest_first.begin(), largest_first.end(),
                   [](const Buffer* a, const Buffer* b) { return a->bytes > b->bytes; });
  std::vector<const Buffer*> placed;
  for (Buffer* b : largest_first) place(*b, placed);
  finished_ = true;
}

size_t Plan::total_bytes() const {
  size_t total = 0;
  for (const Buffer& b : buffers_) total += b.bytes;
  return total;
}

}  // namespace bridle
