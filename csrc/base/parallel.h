// Data parallelism over fixed ranges. A range is a property of the data, never of
// the number of threads, so the number of threads cannot show in a result.
#pragma once

#include <cstddef>
#include <functional>

namespace veilsum {

// One half-open range of a parallel_for.
struct Range {
  std::size_t index;  // which range: begin / range_size
  std::size_t begin;
  std::size_t end;
};

// Calls `body` once per range of `range_size` items out of `items`, on up to `threads`
// threads; one thread, or one range, runs on the caller. Threads block, they never spin.
// If bodies throw, the exception of the lowest range is rethrown when all have stopped,
// so an error too is independent of timing.
//
// Throws ConfigError if threads is 0 or a thread cannot be started.
void parallel_for(std::size_t items, std::size_t range_size, unsigned threads,
                  const std::function<void(const Range&)>& body);

}  // namespace veilsum
