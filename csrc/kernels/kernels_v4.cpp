// x86-64-v4: AVX-512.
#define VS_LANES 16
#include "kernels/codec_loops.inl"
#include "kernels/kernel_table.h"
#include "kernels/optimizer_loops.inl"
#include "kernels/ring_loops.inl"

namespace veilsum {
const KernelTable kV4Kernels = {"v4", kRingKernels, kCodecKernels, kOptimizerKernels};
}
