// Sorting networks, built by the compiler: which values are compared is fixed, so that one vector
// lane can sort one coordinate. Included once per CPU level.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "element/annotate.h"

namespace veilsum {
namespace {

// Largest network that is unrolled: as many values as the widest level has registers.
constexpr std::size_t kMaxNetwork = 32;

// Puts the smaller of two values first. An output nobody looks at is not computed.
struct Comparator {
  std::uint8_t first;
  std::uint8_t second;
  bool smaller;
  bool larger;
};

struct Network {
  Comparator steps[191] = {};  // of the network for kMaxNetwork
  std::size_t count = 0;
};

// Batcher's odd-even merge sort (1968) for any number of values.
constexpr Network sorting_network(std::size_t values) {
  Network network;
  for (std::size_t run = 1; run < values; run *= 2)
    for (std::size_t gap = run; gap > 0; gap /= 2)
      for (std::size_t begin = gap % run; begin + gap < values; begin += 2 * gap)
        for (std::size_t i = begin; i < begin + gap && i + gap < values; ++i)
          if (i / (2 * run) == (i + gap) / (2 * run))
            network.steps[network.count++] = {static_cast<std::uint8_t>(i),
                                              static_cast<std::uint8_t>(i + gap), true, true};
  return network;
}

// Batcher's bitonic merge: sorts values of which some first rise and then fall, or the other way.
constexpr Network bitonic_network(std::size_t values) {
  Network network;
  for (std::size_t gap = values / 2; gap > 0; gap /= 2)
    for (std::size_t begin = 0; begin < values; begin += 2 * gap)
      for (std::size_t i = begin; i < begin + gap; ++i)
        network.steps[network.count++] = {static_cast<std::uint8_t>(i),
                                          static_cast<std::uint8_t>(i + gap), true, true};
  return network;
}

// What of the network the values of ranks first .. last depend on.
constexpr Network selection_network(std::size_t values, std::size_t first, std::size_t last) {
  const Network all = sorting_network(values);
  bool live[kMaxNetwork] = {};
  for (std::size_t rank = first; rank <= last; ++rank) live[rank] = true;
  bool kept[191] = {};
  Network pruned = all;
  for (std::size_t k = all.count; k-- > 0;) {
    Comparator& step = pruned.steps[k];
    step.smaller = live[step.first];
    step.larger = live[step.second];
    kept[k] = step.smaller || step.larger;
    if (kept[k]) live[step.first] = live[step.second] = true;
  }
  pruned.count = 0;
  for (std::size_t k = 0; k < all.count; ++k)
    if (kept[k]) pruned.steps[pruned.count++] = pruned.steps[k];
  return pruned;
}

template <std::size_t kValues>
inline constexpr Network kSorting = sorting_network(kValues);

inline constexpr Network kBitonic = bitonic_network(kMaxNetwork);

template <std::size_t kValues>
inline constexpr Network kMedian = selection_network(kValues, (kValues - 1) / 2, kValues / 2);

// a < b ? a : b and b > a ? b : a: of two zeros, or if one is not a number, both values still
// come out once. Compilers see two comparisons in that, where x86 has an instruction each.
#if defined(__AVX512F__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm512_##op##_ps((__m512)a, (__m512)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm512_##op##_pd((__m512d)a, (__m512d)b)
#elif defined(__AVX2__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm256_##op##_ps((__m256)a, (__m256)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm256_##op##_pd((__m256d)a, (__m256d)b)
#elif defined(__SSE2__)
#define VS_FLOAT_OP(op, a, b) (decltype(a))_mm_##op##_ps((__m128)a, (__m128)b)
#define VS_DOUBLE_OP(op, a, b) (decltype(a))_mm_##op##_pd((__m128d)a, (__m128d)b)
#endif

template <class Lanes>
VS_FN Lanes smaller_of(Lanes a, Lanes b) {
#if defined(VS_FLOAT_OP)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return VS_FLOAT_OP(min, a, b);
  else
    return VS_DOUBLE_OP(min, a, b);
#else
  return a < b ? a : b;
#endif
}

template <class Lanes>
VS_FN Lanes larger_of(Lanes a, Lanes b) {
#if defined(VS_FLOAT_OP)
  if constexpr (sizeof(a[0]) == sizeof(float))
    return VS_FLOAT_OP(max, b, a);
  else
    return VS_DOUBLE_OP(max, b, a);
#else
  return b > a ? b : a;
#endif
}

#undef VS_FLOAT_OP
#undef VS_DOUBLE_OP

template <const Network& kNetwork, std::size_t kStep, class Lanes>
VS_FN void run_step(Lanes* values) {
  constexpr Comparator kComparator = kNetwork.steps[kStep];
  const Lanes a = values[kComparator.first];
  const Lanes b = values[kComparator.second];
  if constexpr (kComparator.smaller) values[kComparator.first] = smaller_of(a, b);
  if constexpr (kComparator.larger) values[kComparator.second] = larger_of(a, b);
}

template <const Network& kNetwork, class Lanes, std::size_t... kSteps>
VS_FN void run_steps([[maybe_unused]] Lanes* values, std::index_sequence<kSteps...>) {
  (run_step<kNetwork, kSteps>(values), ...);
}

// `values` is a local array of constant size, so that each value is in a register.
template <const Network& kNetwork, class Lanes>
VS_FN void run_network(Lanes* values) {
  run_steps<kNetwork>(values, std::make_index_sequence<kNetwork.count>());
}

}  // namespace
}  // namespace veilsum
