// Which CPU level runs.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/kernel_table.h"

namespace veilsum {

// The tables this CPU can run, weakest first.
const std::vector<const KernelTable*>& supported_kernels();

// The table in use: the one use_isa() chose, else the one VEILSUM_ISA names, else the
// strongest. Throws ConfigError if VEILSUM_ISA names none that this CPU can run.
const KernelTable& kernels();

// Makes the whole process use one table; "" goes back to the default. Throws
// ConfigError if this CPU cannot run it. Any level gives the same bits.
void use_isa(std::string_view name);

}  // namespace veilsum
