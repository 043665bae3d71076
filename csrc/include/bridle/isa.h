// Instruction sets of which the library has variants.
#pragma once

#include <string>
#include <vector>

namespace bridle {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// "scalar", "avx2", "avx512", "avx512_bf16".
std::string isa_name(Isa isa);

// What this CPU can run, slowest first.
std::vector<Isa> available_isas();

// The named one. Throws std::invalid_argument for an unknown name and for one that this CPU lacks.
Isa isa_from_name(const std::string& name);

// BRIDLE_FORCE_ISA if it is set, else the best available one. Throws as isa_from_name.
Isa active_isa();

}  // namespace bridle
