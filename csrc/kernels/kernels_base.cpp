// What every x86-64 or aarch64 CPU runs: SSE2 or NEON.
#define VS_LANES 4
#include "kernels/codec_loops.inl"
#include "kernels/kernel_table.h"
#include "kernels/optimizer_loops.inl"
#include "kernels/ring_loops.inl"

namespace veilsum {
const KernelTable kBaseKernels = {"base", kRingKernels, kCodecKernels, kOptimizerKernels};
}
