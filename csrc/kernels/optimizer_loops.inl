// The loops of the server optimizers. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
#pragma once

#include "element/fixed_point.h"
#include "element/half.h"
#include "kernels/optimizer_kernels.h"

namespace veilsum {
namespace {

struct ToNearest {
  VS_FN float narrow(double value) { return static_cast<float>(value); }
};

// The neighbour with an odd pattern, unless the value is a float. Magnitudes order like
// patterns, so the other neighbour is one pattern away. In integers, without branches.
struct ToOdd {
  VS_FN float narrow(double value) {
    const auto nearest = static_cast<float>(value);
    const auto back = static_cast<double>(nearest);
    const std::uint32_t bits = bits_of_float(nearest);
    const double magnitude = __builtin_fabs(value);
    const double back_magnitude = __builtin_fabs(back);
    const std::uint32_t even = ~bits & 1u;
    const std::uint32_t up = back_magnitude < magnitude ? even : 0u;
    const std::uint32_t down = back_magnitude > magnitude ? even : 0u;
    return float_of_bits(bits + up - down);
  }
};

struct Keep {
  VS_FN double narrow(double value) { return value; }
};

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
    const double delta = static_cast<double>(at.mean[i]) * held.gain;
    const double change = Step::template change<Stored>(delta, moments, held);
    if constexpr (Step::kFirst) at.first[i] = moments.first;
    if constexpr (Step::kSecond) at.second[i] = moments.second;
    at.updated[i] = Narrowing::narrow(static_cast<double>(at.model[i]) + change);
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
