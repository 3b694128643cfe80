// How many of a few ascending bounds lie below a value, in vectors. Included once per CPU level.
#pragma once

#include "kernels/lanes.inl"

namespace veilsum {
namespace {

typedef float RankFloats __attribute__((vector_size(4 * VS_LANES)));

#if VS_LANES >= 8 && !defined(__clang__)
// From the middle bound on, each comparison halves what is left: a rank's bits come out from
// the highest to the lowest, and the bits so far say which bound is next.
template <unsigned kBits>
struct Bounds {
  RankFloats next[kBits];  // by the bits so far

  VS_FN void load(Bounds& held, const float* bounds) {
    for (unsigned level = 0; level < kBits; ++level)
      for (unsigned lane = 0; lane < VS_LANES; ++lane) {
        const unsigned so_far = lane % (1u << level);
        held.next[level][lane] = bounds[((2 * so_far + 1) << (kBits - 1 - level)) - 1];
      }
  }

  VS_FN Lanes rank(const Bounds& held, RankFloats value) {
    SignedLanes found = -(value > held.next[0]);  // true is -1 in a lane
#pragma GCC unroll 4
    for (unsigned level = 1; level < kBits; ++level)
      found = found + found - (value > __builtin_shuffle(held.next[level], found));
    return (Lanes)found;
  }
};
#else
template <unsigned kBits>
struct Bounds {
  RankFloats bound[(1u << kBits) - 1];

  VS_FN void load(Bounds& held, const float* bounds) {
    for (unsigned k = 0; k + 1 < 1u << kBits; ++k) held.bound[k] = RankFloats{} + bounds[k];
  }

  VS_FN Lanes rank(const Bounds& held, RankFloats value) {
    SignedLanes found{};
    for (unsigned k = 0; k + 1 < 1u << kBits; ++k) found -= value > held.bound[k];
    return (Lanes)found;
  }
};
#endif

}  // namespace
}  // namespace veilsum
