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

// While one lives, its thread uses the weakest table and the plainest AES, whatever the process
// uses: for work that checks what other kernels have computed.
class WeakestKernels {
 public:
  WeakestKernels();
  ~WeakestKernels();
  WeakestKernels(const WeakestKernels&) = delete;
  WeakestKernels& operator=(const WeakestKernels&) = delete;
};

// Whether a WeakestKernels lives on this thread.
bool weakest_kernels();

// Makes the whole process use one table; "" goes back to the default. Throws
// ConfigError if this CPU cannot run it. Any level gives the same bits.
void use_isa(std::string_view name);

}  // namespace veilsum
