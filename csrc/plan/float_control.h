// How the thread rounds while it works: to nearest, with subnormal numbers, without traps, whoever calls. The bits of a
// result would depend on the number of threads if the caller's thread flushed subnormals to zero
// (torch.set_flush_denormal) and the pool's did not.
//
// Products in VDPBF16PS and the matrix unit flush by themselves, whatever is set, in every thread alike.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace bridle {

// Sets it, and what was there before when it goes. Other CPUs keep what they have.
class DefaultFloatControl {
 public:
  DefaultFloatControl(const DefaultFloatControl&) = delete;
  DefaultFloatControl& operator=(const DefaultFloatControl&) = delete;

#if defined(__SSE__)
  DefaultFloatControl() : before_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~DefaultFloatControl() { _mm_setcsr(before_); }

 private:
  // What a process starts with: every exception masked, and no other bit.
  static constexpr unsigned kDefault = 0x1F80;

  unsigned before_;
#else
  DefaultFloatControl() {}
  ~DefaultFloatControl() {}
#endif
};

}  // namespace bridle
