// x86-64-v2: SSE4.2.
#define VS_LANES 4
#include "kernels/gram_loops.inl"
#include "kernels/order_kernels.h"
#include "kernels/order_loops.inl"

namespace veilsum {
const RuleKernels kV2RuleKernels = {"v2", kFloatColumns, kDoubleColumns, kGramKernels};
}
