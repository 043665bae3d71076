// Instruction sets of which the library has variants.
#pragma once

#include <string>
#include <vector>

namespace bridle {

// kEmulatedAmx: the matrix unit's instructions in plain code, on any CPU; what else an op does is scalar.
enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16, kEmulatedAmx };

// "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16", "emulated_amx".
std::string isa_name(Isa isa);

// What this CPU can run, slowest first; what is emulated is not among them.
std::vector<Isa> available_isas();

// Whether code for `wanted` can be used under `isa`: each set contains those before it.
bool contains(Isa isa, Isa wanted);

// The named one. Throws std::invalid_argument for an unknown name and for one that this CPU lacks.
Isa isa_from_name(const std::string& name);

// BRIDLE_FORCE_ISA if it is set, else the best available one. Throws as isa_from_name.
Isa active_isa();

}  // namespace bridle
