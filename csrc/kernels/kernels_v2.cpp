// x86-64-v2: SSE4.2.
#define VS_LANES 4
#include "kernels/codec_loops.inl"
#include "kernels/kernel_table.h"
#include "kernels/optimizer_loops.inl"
#include "kernels/ring_loops.inl"

namespace veilsum {
const KernelTable kV2Kernels = {"v2", kRingKernels, kCodecKernels, kOptimizerKernels};
}
