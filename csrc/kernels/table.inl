// The kernel table of one CPU level, from every loop there is. Included once per level, with
// VS_LANES, VS_LEVEL and VS_TABLE set.
#include "kernels/block_loops.inl"
#include "kernels/codec_loops.inl"
#include "kernels/eden.inl"
#include "kernels/kernel_table.h"
#include "kernels/optimizer_loops.inl"
#include "kernels/ring_loops.inl"
#include "kernels/rotation.inl"

namespace veilsum {

const KernelTable VS_TABLE = {
    .name = VS_LEVEL,
    .ring = kRingKernels,
    .codec = kCodecKernels,
    .optimizer = kOptimizerKernels,
    .rotation = kRotationKernels,
    .eden = kEdenKernels,
    .block = kBlockKernels,
};

}  // namespace veilsum
