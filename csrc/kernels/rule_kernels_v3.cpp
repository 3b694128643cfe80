// x86-64-v3: AVX2.
#define VS_LANES 8
#include "kernels/gram_loops.inl"
#include "kernels/order_kernels.h"
#include "kernels/order_loops.inl"

namespace veilsum {
const RuleKernels kV3RuleKernels = {"v3", kFloatColumns, kDoubleColumns, kGramKernels};
}
