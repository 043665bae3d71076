// Intel's matrix unit (AMX).
#pragma once

namespace bridle {

// Whether the CPU has it for bfloat16, the system lets this process use its registers, and it computes what it should.
// Found out once.
bool amx_works();

}  // namespace bridle
