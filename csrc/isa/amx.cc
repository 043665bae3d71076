#include "isa/amx.h"

#if defined(__x86_64__) && defined(__linux__)

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "ops/gemm/amx_block.h"
#include "ops/gemm/emulated_block.h"

namespace bridle {
namespace {

// Linux gives a process the 8 KiB of tile registers only on request: arch_prctl(ARCH_REQ_XCOMP_PERM,
// XFEATURE_XTILEDATA) of asm/prctl.h, for all of its threads.
constexpr long kRequestPermission = 0x1023, kTileData = 18;

bool permitted() { return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0; }

template <class Block>
void product(const uint16_t* left, const uint16_t* right, float* sums) {
  Block::enter();
  Block block;
  block.load(sums, 32);
  block.multiply_add({left, 32}, {left + 16 * 32, 32}, right, 32);
  block.store(sums, 32);
  Block::leave();
}

// Virtual machines have been seen that offer the unit and lose its registers: one product of small integers.
bool computes() {
  uint16_t left[32 * 32], right[32 * 32];
  float ours[32 * 32], wanted[32 * 32];
  for (int i = 0; i < 32 * 32; ++i) {
    left[i] = BFloat16::narrow(static_cast<float>(i * 7 % 11 - 5));
    right[i] = BFloat16::narrow(static_cast<float>(i * 5 % 13 - 6));
    ours[i] = wanted[i] = static_cast<float>(i % 17);
  }
  product<AmxBlock<2>>(left, right, ours);
  product<EmulatedBlock<2>>(left, right, wanted);
  return std::memcmp(ours, wanted, sizeof(ours)) == 0;
}

}  // namespace

bool amx_works() {
  static const bool works = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                            __builtin_cpu_supports("avx512bf16") && permitted() && computes();
  return works;
}

}  // namespace bridle

#else

namespace bridle {

bool amx_works() { return false; }

}  // namespace bridle

#endif
