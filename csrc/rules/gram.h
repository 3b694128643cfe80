// Inner products of all pairs of updates: what distances, and every rule built on them, follow
// from. One pass over the data, whatever the rule.
#pragma once

#include <cstddef>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/layout.h"

namespace veilsum {

// A symmetric matrix of n rows, row-major; what it stands for is values * 2^(2 * exponent).
struct Gram {
  std::size_t rows;
  int exponent;  // 0 unless the values of f64 tensors are beyond 2^480
  std::vector<double> values;

  double at(std::size_t i, std::size_t j) const { return values[i * rows + j]; }
};

// Inner products over all coordinates of group 1. Within a range of 65536 coordinates products are
// added in double in a fixed order; ranges are added as 128-bit integers. So order of arrival,
// threads and instruction set cannot show, and equal updates have equal rows to the last bit.
//
// Throws ConfigError if tensors that are not ours were changed.
Gram gram_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads);

// Norms of group 1: from what was noted on arrival, or, for updates where it was not, by a pass.
std::vector<double> norms_of(const Layout& layout, const UpdateSnapshot& set, unsigned threads);

}  // namespace veilsum
