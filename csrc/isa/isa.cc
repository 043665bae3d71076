#include "bridle/isa.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <stdexcept>
#include <utility>

#include "isa/amx.h"

namespace bridle {
namespace {

constexpr std::array<std::pair<Isa, const char*>, 6> kNames = {{{Isa::kScalar, "scalar"},
                                                                {Isa::kAvx2, "avx2"},
                                                                {Isa::kAvx512, "avx512"},
                                                                {Isa::kAvx512Bf16, "avx512_bf16"},
                                                                {Isa::kAmxBf16, "amx_bf16"},
                                                                {Isa::kEmulatedAmx, "emulated_amx"}}};

}  // namespace

std::string isa_name(Isa isa) {
  for (const auto& [known, name] : kNames) {
    if (known == isa) return name;
  }
  throw std::logic_error("isa_name: unnamed instruction set");
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found = {Isa::kScalar};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"))
    found.push_back(Isa::kAvx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) found.push_back(Isa::kAvx512);
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    found.push_back(Isa::kAvx512Bf16);
  if (found.back() == Isa::kAvx512Bf16 && amx_works()) found.push_back(Isa::kAmxBf16);
#endif
  return found;
}

bool contains(Isa isa, Isa wanted) { return isa != Isa::kEmulatedAmx && isa >= wanted; }

Isa isa_from_name(const std::string& name) {
  for (const auto& [isa, known] : kNames) {
    if (name != known) continue;
    const std::vector<Isa> available = available_isas();
    if (isa == Isa::kEmulatedAmx) return isa;
    if (std::find(available.begin(), available.end(), isa) != available.end()) return isa;
    throw std::invalid_argument("BRIDLE_FORCE_ISA: this CPU has no " + name);
  }
  throw std::invalid_argument("BRIDLE_FORCE_ISA: got '" + name +
                              "', wants scalar, avx2, avx512, avx512_bf16, amx_bf16 or emulated_amx");
}

Isa active_isa() {
  const char* forced = std::getenv("BRIDLE_FORCE_ISA");
  return forced != nullptr && *forced != '\0' ? isa_from_name(forced) : available_isas().back();
}

}  // namespace bridle
