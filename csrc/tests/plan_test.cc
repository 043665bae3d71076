// A small network as a plan: same bits whatever the threads, frames side by side, and no memory allocated in a replay.
#include "bridle/plan.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "bridle/record.h"
#include "tests/expect.h"

namespace {
std::atomic<int64_t> allocations{0};

void* counted(size_t bytes, size_t alignment) {
  ++allocations;
  void* const data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}
}  // namespace

void* operator new(size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new[](size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) { return counted(bytes, static_cast<size_t>(alignment)); }
void* operator new[](size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<size_t>(alignment));
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted(bytes, alignof(std::max_align_t)); }
void operator delete(void* data) noexcept { std::free(data); }
void operator delete[](void* data) noexcept { std::free(data); }
void operator delete(void* data, size_t) noexcept { std::free(data); }
void operator delete[](void* data, size_t) noexcept { std::free(data); }
void operator delete(void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, std::align_val_t) noexcept { std::free(data); }
void operator delete(void* data, size_t, std::align_val_t) noexcept { std::free(data); }
void operator delete[](void* data, size_t, std::align_val_t) noexcept { std::free(data); }

namespace bridle {
namespace {

constexpr int64_t kRows = 2, kSide = 10, kPixels = kSide * kSide, kHeads = 2, kDim = 16, kChannels = kHeads * kDim;
constexpr int64_t kKeys = 7, kMapColumns = kKeys + 3;

std::vector<float> pattern(int64_t count, int seed) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = static_cast<float>((i * 37 + seed * 101) % 53 - 26) / 64.0f;
  return values;
}

// Two convolutions, a norm, Q, K and V, self-attention, cross-attention, a residual and a projection.
struct Network {
  std::shared_ptr<Plan> plan = std::make_shared<Plan>();
  std::vector<float> scale = std::vector<float>(kChannels, 1.0f), bias = pattern(kChannels, 5);
  std::vector<float> keys = pattern(kRows * kKeys * kChannels, 6), residual = pattern(kRows * kPixels * kChannels, 7);
  std::vector<float> lse = std::vector<float>(kRows * kHeads * kPixels),
                     maps = std::vector<float>(kPixels * kMapColumns);
  std::vector<float> masses = std::vector<float>(kRows * kHeads * 2);
  int32_t input, output, attention, point;

  Network() {
    const auto image = [](int32_t buffer, std::vector<int64_t> shape, int64_t offset = 0) {
      Strided layout;
      layout.shape = shape;
      layout.strides.assign(shape.size(), 1);
      for (int64_t i = static_cast<int64_t>(shape.size()) - 2; i >= 0; --i) {
        layout.strides[i] = layout.strides[i + 1] * shape[i + 1];
      }
      return PlanTensor{buffer, offset * 4, layout};
    };
    const auto buffer = [&](int64_t channels) { return plan->add_buffer(kRows * kPixels * channels * 4); };
    const auto matrix = [&](int32_t b, int64_t channels) { return image(b, {kRows * kPixels, channels}); };
    const auto weights = [](int64_t n, std::vector<int64_t> widths, int seed) {
      const int64_t k = std::accumulate(widths.begin(), widths.end(), int64_t{0});
      std::vector<float> values = pattern(n * k, seed);
      const Strided weight{values.data(), Dtype::kFloat32, {n, k}, {k, 1}};
      ThreadPool pool(1);
      return std::make_shared<PackedWeights>(WeightFormat{n, widths, Dtype::kFloat32, active_isa()},
                                             std::vector<Strided>{weight}, pool);
    };
    const std::vector<int64_t> pixels = {kRows, kSide, kSide, 4}, flat = {kRows, kPixels, kChannels};
    input = plan->add_input(kRows * kPixels * 4 * 4);
    const int32_t b = plan->add_constant(bias.data()), s = plan->add_constant(scale.data());
    const int32_t made = buffer(kChannels), normed = buffer(kChannels), qkv = buffer(3 * kChannels),
                  own = buffer(kChannels), cross = buffer(kChannels), enlarged = buffer(kChannels);
    output = buffer(kChannels);
    record_conv2d(*plan, weights(kChannels, std::vector<int64_t>(9, 4), 1), {image(input, pixels)},
                  matrix(made, kChannels), {3, 3}, 1, {1, 1, 1, 1}, {}, image(b, {kChannels}), {}, {}, "silu");
    record_upsampled_conv2d(*plan, PhaseWeights(kPhases, weights(kChannels, std::vector<int64_t>(4, 4), 4)),
                            {image(input, {kRows, kSide / 2, kSide / 2, 4})}, matrix(enlarged, kChannels), {}, {},
                            matrix(made, kChannels), "");
    record_group_norm(*plan, {image(made, flat)}, image(normed, flat), image(s, {kChannels}), image(b, {kChannels}), 4,
                      1e-5, "");
    record_linear(*plan, weights(3 * kChannels, {kChannels}, 2), matrix(normed, kChannels), matrix(qkv, 3 * kChannels),
                  {}, {}, "");
    const auto head = [&](int64_t part) {
      PlanTensor tensor = image(qkv, {kRows, kPixels, kHeads, kDim}, part * kChannels);
      tensor.layout.strides = {kPixels * 3 * kChannels, 3 * kChannels, kDim, 1};
      return tensor;
    };
    record_own_attention(*plan, head(0), {head(1)}, {head(2)}, image(own, flat), 0.25f, false, false,
                         plan->add_row_port());
    attention =
        record_bound_attention(*plan, image(own, {kRows, kPixels, kHeads, kDim}), image(cross, flat), 0.25f, false);
    point = record_residual_add(*plan, image(cross, flat));
    record_linear(*plan, weights(kChannels, {kChannels}, 3), matrix(cross, kChannels), matrix(output, kChannels), {},
                  matrix(enlarged, kChannels), "");
    plan->keep(output);
    plan->finish();
  }

  AttentionSegment plain() {
    AttentionSegment segment;
    const Strided k{
        keys.data(), Dtype::kFloat32, {kRows, kKeys, kHeads, kDim}, {kKeys * kChannels, kChannels, kDim, 1}};
    segment.pieces.push_back({k, k, {kKeys, kKeys - 2}});
    segment.q_rows = segment.k_rows = segment.v_rows = {0, 1};
    return segment;
  }

  // All that a segment can have: one with a bias, one with a shift of masses, one with mixed values; all report.
  std::vector<AttentionSegment> controlled() {
    AttentionSegment biased = plain(), shifted = plain(), mixed = plain();
    biased.bias = {bias.data(), Dtype::kFloat32, {kRows, kHeads, kPixels, kKeys}, {0, 0, 0, 1}};
    biased.lse = {lse.data(), Dtype::kFloat32, {kRows, kHeads, kPixels}, {kHeads * kPixels, kPixels, 1}};
    biased.captures.push_back({{0}, {}, {0.5f}, map(0, kKeys)});
    shifted.mass.count = 2;
    shifted.mass.columns = {1, 3, 2, -1};
    shifted.mass.share = {0.5f, 1.0f, 0.25f, 0.0f};
    shifted.mass.window = {residual.data(), Dtype::kFloat32, {kRows, 1, kPixels}, {kPixels, kPixels, 1}};
    shifted.mass.out = {masses.data(), Dtype::kFloat32, {kRows, kHeads, 2}, {kHeads * 2, 2, 1}};
    shifted.captures.push_back({{0}, {2, 0}, {1.0f}, map(kKeys, 2)});
    mixed.v_mix = {keys.data(), Dtype::kFloat32, {kRows, kKeys, kKeys}, {kKeys * kKeys, kKeys, 1}};
    mixed.captures.push_back({{0}, {5}, {1.0f}, map(kKeys + 2, 1)});
    return {biased, shifted, mixed};
  }

  // The mean over heads of a capture's columns.
  Strided map(int64_t first, int64_t columns) {
    return {maps.data() + first, Dtype::kFloat32, {1, kPixels, columns}, {kPixels * kMapColumns, kMapColumns, 1}};
  }

  void bind(Frame& frame, bool controls = false) {
    frame.bind_segments(attention, controls ? controlled() : std::vector<AttentionSegment>{plain()});
    ResidualTerm term{residual.data(), kPixels * kChannels, kChannels, {1}, {0.5f}, nullptr, 0};
    frame.bind_residuals(point, {term});
    const std::vector<float> sample = pattern(kRows * kPixels * 4, 8);
    std::memcpy(frame.at(input), sample.data(), sample.size() * 4);
  }

  std::vector<std::byte> result(const Frame& frame) const {
    const std::byte* const data = frame.at(output);
    return {data, data + kRows * kPixels * kChannels * 4};
  }
};

void replays_are_equal_and_allocate_nothing(bool controls) {
  Network network;
  std::vector<std::byte> first;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    Frame frame(network.plan);
    network.bind(frame, controls);
    frame.run(pool);
    const std::vector<std::byte> found = network.result(frame);
    if (first.empty()) first = found;
    EXPECT(found == first);
    for (int turn = 0; turn < 20; ++turn) {
      // What is bound anew is packed anew.
      if (turn % 5 == 4) network.bind(frame, controls);
      std::memset(frame.at(network.output), 0xff, 64);
      const int64_t before = allocations;
      frame.run(pool);
      EXPECT(allocations == before);
      EXPECT(network.result(frame) == first);
    }
  }
  // The count can tell: binding anew does allocate.
  Frame frame(network.plan);
  const int64_t before = allocations;
  network.bind(frame, controls);
  EXPECT(allocations > before);
}

void controls_are_not_without_effect() {
  Network network;
  ThreadPool pool(2);
  Frame frame(network.plan);
  network.bind(frame);
  frame.run(pool);
  const std::vector<std::byte> plain = network.result(frame);
  network.bind(frame, true);
  frame.run(pool);
  EXPECT(network.result(frame) != plain);
  for (const std::vector<float>* reported : {&network.lse, &network.masses, &network.maps}) {
    EXPECT(std::any_of(reported->begin(), reported->end(), [](float value) { return value != 0.0f; }));
  }
}

void frames_run_side_by_side() {
  Network network;
  ThreadPool pool(2);
  Frame alone(network.plan);
  network.bind(alone);
  alone.run(pool);
  const std::vector<std::byte> wanted = network.result(alone);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      Frame frame(network.plan);
      network.bind(frame);
      for (int turn = 0; turn < 20; ++turn) {
        frame.run(pool);
        EXPECT(network.result(frame) == wanted);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void frames_count_what_they_hold() {
  Network network;
  Frame frame(network.plan);
  const size_t unbound = frame.bytes();
  // A self-attention's keys and values: those of one at a time.
  EXPECT(unbound >= network.plan->arena_bytes() + 2 * kRows * kPixels * kChannels * sizeof(float));
  network.bind(frame);
  const size_t plain = frame.bytes(), cross = 2 * kRows * kKeys * kChannels * sizeof(float);
  EXPECT(plain >= unbound + cross);
  network.bind(frame, true);
  EXPECT(frame.bytes() >= plain + 2 * cross);
  const size_t most = frame.bytes();
  ThreadPool pool(2);
  frame.run(pool);
  EXPECT(frame.bytes() == most);
}

void buffers_share_memory() {
  Network network;
  EXPECT(network.plan->arena_bytes() < network.plan->total_bytes());
  Plan plan;
  const int32_t a = plan.add_buffer(100), b = plan.add_buffer(100), c = plan.add_buffer(100);
  const auto nothing = [](Frame&) -> Plan::Step { return [](ThreadPool&) {}; };
  plan.add("first", {}, {a}, nothing);
  plan.add("second", {a}, {b}, nothing);
  plan.add("third", {b}, {c}, nothing);
  plan.finish();
  EXPECT(plan.arena_bytes() == 256);
}

void mistakes_are_named() {
  const auto thrown = [](auto body) {
    try {
      body();
    } catch (const std::exception&) {
      return true;
    }
    return false;
  };
  Network network;
  Frame frame(network.plan);
  ThreadPool pool(1);
  EXPECT(thrown([&] { frame.run(pool); }));  // no segments
  EXPECT(thrown([&] { frame.bind_residuals(9, {}); }));
  EXPECT(thrown([&] { frame.bind_rows(0, {0}); }));
  Plan plan;
  const int32_t a = plan.add_buffer(64);
  EXPECT(thrown([&] { plan.add("op", {a}, {}, nullptr); }));  // never written
  EXPECT(thrown([&] { plan.add("op", {}, {7}, nullptr); }));
  EXPECT(thrown([&] { Frame early(std::make_shared<Plan>()); }));
}

}  // namespace
}  // namespace bridle

int main() {
  for (const bool controls : {false, true}) bridle::replays_are_equal_and_allocate_nothing(controls);
  bridle::controls_are_not_without_effect();
  bridle::frames_run_side_by_side();
  bridle::frames_count_what_they_hold();
  bridle::buffers_share_memory();
  bridle::mistakes_are_named();
}
