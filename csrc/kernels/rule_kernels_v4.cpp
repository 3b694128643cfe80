// x86-64-v4: AVX-512.
#define VS_LANES 16
#include "kernels/gram_loops.inl"
#include "kernels/order_kernels.h"
#include "kernels/order_loops.inl"

namespace veilsum {
const RuleKernels kV4RuleKernels = {"v4", kFloatColumns, kDoubleColumns, kGramKernels};
}
