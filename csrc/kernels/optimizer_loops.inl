// The loops of the server optimizers. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "kernels/optimizer_kernels.h"

namespace veilsum {
namespace {

// Coordinates are independent and every array is read at an index before it is written there,
// so `updated` may be `model`; the compiler is told, or it would fall back to single values.
#if defined(__clang__)
#define VS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define VS_INDEPENDENT _Pragma("GCC ivdep")
#endif

template <class Step, class Narrowing, class Stored>
void optimizer_loop(const OptimizerArrays<Stored>& arrays, const OptimizerRule& rule) {
  const OptimizerArrays<Stored> at = arrays;  // copies that no store can change
  const OptimizerRule held = rule;
  VS_INDEPENDENT
  for (std::size_t i = 0; i < at.count; ++i) {
    Moments<Stored> moments = {0, 0};
    if constexpr (Step::kFirst) moments.first = at.first[i];
    if constexpr (Step::kSecond) moments.second = at.second[i];
    const double updated = stepped_value<Step>(static_cast<double>(at.model[i]),
                                               static_cast<double>(at.mean[i]), moments, held);
    if constexpr (Step::kFirst) at.first[i] = moments.first;
    if constexpr (Step::kSecond) at.second[i] = moments.second;
    at.updated[i] = Narrowing::narrow(updated);
  }
}

// In the order of OptimizerKind.
#define VS_STEPS(narrowing, stored)                                                               \
  {optimizer_loop<FedAvgStep, narrowing, stored>, optimizer_loop<FedAvgMStep, narrowing, stored>, \
   optimizer_loop<FedAdagradStep, narrowing, stored>,                                             \
   optimizer_loop<FedAdamStep, narrowing, stored>, optimizer_loop<FedYogiStep, narrowing, stored>}

constexpr OptimizerKernels kOptimizerKernels = {
    VS_STEPS(ToNearest, float),
    VS_STEPS(ToOdd, float),
    VS_STEPS(Keep, double),
};

#undef VS_STEPS
#undef VS_INDEPENDENT

}  // namespace
}  // namespace veilsum
