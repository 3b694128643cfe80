// Inner products of all pairs of updates: what distances, and every rule built on them, follow
// from. One pass over the data, whatever the rule.
#pragma once

#include <cstddef>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"
#include "device/device.h"

namespace veilsum {

// A symmetric matrix of n rows, row-major.
struct Gram {
  std::size_t rows;
  std::vector<double> values;

  double at(std::size_t i, std::size_t j) const { return values[i * rows + j]; }
};

// Powers of two by which updates are made smaller before anything is said about distances: 1, but
// for one with f64 values of 2^448 or more what brings it just below. No double holds both the
// square of such a value and that of a usual distance; who sends one could hide all differences of
// others behind it. As anything else that a byzantine site may send, it is harmless as a row of the
// direction that it has.
std::vector<double> shrinks_of(const UpdateSnapshot& set);

// Inner products, of updates times their shrinks, over all coordinates of group 1. Within a range
// of 65536 coordinates products are added in double in a fixed order; ranges are added as 128-bit
// integers. So order of arrival, threads and instruction set cannot show, and equal updates have
// equal rows to the last bit.
//
// With a device (null: this machine's processors) products are taken there.
//
// Throws ConfigError if tensors that are not ours were changed.
Gram gram_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
             const Device* device);

// Norms of group 1: from what was noted on arrival, or, for updates where it was not, by a pass.
std::vector<double> norms_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads);

}  // namespace veilsum
