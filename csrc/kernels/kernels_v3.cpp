// x86-64-v3: AVX2.
#define VS_LANES 8
#include "kernels/codec_loops.inl"
#include "kernels/kernel_table.h"
#include "kernels/optimizer_loops.inl"
#include "kernels/ring_loops.inl"

namespace veilsum {
const KernelTable kV3Kernels = {"v3", kRingKernels, kCodecKernels, kOptimizerKernels};
}
