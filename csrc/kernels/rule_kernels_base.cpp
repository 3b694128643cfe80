// What every x86-64 or aarch64 CPU runs: SSE2 or NEON.
#define VS_LANES 4
#include "kernels/gram_loops.inl"
#include "kernels/order_kernels.h"
#include "kernels/order_loops.inl"

namespace veilsum {
const RuleKernels kBaseRuleKernels = {"base", kFloatColumns, kDoubleColumns, kGramKernels};
}
