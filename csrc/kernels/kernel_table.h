// All loops of one CPU level as function pointers.
#pragma once

#include "kernels/block_kernels.h"
#include "kernels/codec_kernels.h"
#include "kernels/eden_kernels.h"
#include "kernels/optimizer_kernels.h"
#include "kernels/ring_kernels.h"
#include "kernels/rotation_kernels.h"

namespace veilsum {

struct KernelTable {
  const char* name;
  RingKernels ring;
  CodecKernels codec;
  OptimizerKernels optimizer;
  RotationKernels rotation;
  EdenKernels eden;
  BlockKernels block;
};

// Each is the only symbol of its object file (cmake/CheckKernelSymbols.cmake).
extern const KernelTable kBaseKernels;
#if defined(__x86_64__)
extern const KernelTable kV2Kernels;
extern const KernelTable kV3Kernels;
extern const KernelTable kV4Kernels;
#endif

}  // namespace veilsum
