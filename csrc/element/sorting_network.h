// Sorting networks, built by the compiler: which values are compared is fixed, so that a lane of a
// vector, or a thread of a device, can sort one coordinate without a branch.
//
// Everything has internal linkage, see annotate.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

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

// Which network. Types, because compilers for devices take no constants as template arguments.
template <std::size_t kValues>
struct Sorting {
  static constexpr Network kNetwork = sorting_network(kValues);
};
struct Bitonic {
  static constexpr Network kNetwork = bitonic_network(kMaxNetwork);
};
template <std::size_t kValues>
struct Median {
  static constexpr Network kNetwork = selection_network(kValues, (kValues - 1) / 2, kValues / 2);
};

template <class Which, std::size_t kStep, class Order, class Value>
VS_FN void run_step(Value* values) {
  constexpr Comparator kComparator = Which::kNetwork.steps[kStep];
  const Value a = values[kComparator.first];
  const Value b = values[kComparator.second];
  if constexpr (kComparator.smaller) values[kComparator.first] = Order::smaller(a, b);
  if constexpr (kComparator.larger) values[kComparator.second] = Order::larger(a, b);
}

template <class Which, class Order, class Value, std::size_t... kSteps>
VS_FN void run_steps([[maybe_unused]] Value* values, std::index_sequence<kSteps...>) {
  (run_step<Which, kSteps, Order>(values), ...);
}

// `values` is a local array of constant size, so that each value is in a register.
// Order::smaller and Order::larger give one of two values each.
template <class Which, class Order, class Value>
VS_FN void run_network(Value* values) {
  run_steps<Which, Order>(values, std::make_index_sequence<Which::kNetwork.count>());
}

}  // namespace
}  // namespace veilsum
