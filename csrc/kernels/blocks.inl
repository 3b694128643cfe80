// The blocks of a range. Included once per CPU level, see block_loops.inl.
#pragma once

#include "element/annotate.h"
#include "kernels/block_kernels.h"

namespace veilsum {
namespace {

// Calls `body(block, begin, length)` for every block of a range.
template <class Body>
VS_FN void for_each_block(const BlockRange& range, const Body& body) {
  const std::size_t size = range.block;
  for (std::size_t begin = 0; begin < range.count; begin += size) {
    const std::size_t left = range.count - begin;
    body(begin / size, begin, left < size ? left : size);
  }
}

}  // namespace
}  // namespace veilsum
