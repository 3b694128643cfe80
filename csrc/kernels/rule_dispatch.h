// The rule kernels of the CPU level that runs.
#pragma once

#include "kernels/order_kernels.h"

namespace veilsum {

// Of the same level as kernels().
const RuleKernels& rule_kernels();

}  // namespace veilsum
