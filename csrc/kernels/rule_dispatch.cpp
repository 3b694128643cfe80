#include "kernels/rule_dispatch.h"

#include <string_view>

#include "kernels/dispatch.h"

namespace veilsum {

const RuleKernels& rule_kernels() {
#if defined(__x86_64__)
  const std::string_view level = kernels().name;
  for (const RuleKernels* table : {&kV4RuleKernels, &kV3RuleKernels, &kV2RuleKernels})
    if (table->name == level) return *table;
#endif
  return kBaseRuleKernels;
}

}  // namespace veilsum
