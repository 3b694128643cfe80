// Public step scales that differ along a group: one per tensor, or one per block of coordinates.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "codec/layout.h"

namespace veilsum {

// Which entry of a table holds for a coordinate of group 1.
class ScaleGrid {
 public:
  // One entry per tensor of the group.
  explicit ScaleGrid(const Layout& layout);
  // A block of 0 means one entry per tensor of the group, gaps counting to the tensor before
  // them; else one per so many coordinates, counted from the start of the group. Throws
  // ConfigError unless the block is 0, 256, 1024 or 4096, and there are as many entries as the
  // layout needs.
  ScaleGrid(const Layout& layout, std::size_t block, std::size_t entries);

  std::size_t block() const { return block_; }
  std::size_t entries() const { return entries_; }

  // Calls body(offset, count, entry) for the stretches of [first, first + count) that share an
  // entry; offsets are counted from `first`.
  template <class Body>
  void for_each_stretch(std::uint64_t first, std::size_t count, Body&& body) const {
    for (std::size_t done = 0; done < count;) {
      const auto [entry, end] = find(first + done);
      const std::size_t length =
          end - (first + done) < count - done ? end - (first + done) : count - done;
      body(done, length, entry);
      done += length;
    }
  }

 private:
  struct Found {
    std::size_t entry;
    std::uint64_t end;  // of the coordinates that share it
  };
  Found find(std::uint64_t coordinate) const;

  std::size_t block_;
  std::size_t entries_;
  std::vector<std::uint64_t> ends_;  // one per tensor, if the block is 0
};

}  // namespace veilsum
