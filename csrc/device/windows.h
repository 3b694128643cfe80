// Windows that stream through a device, some of them under way at once.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>

#include "aggregate/update_set.h"

namespace veilsum {

struct Window {
  std::size_t first_tile;
  std::size_t tiles;
};

// Windows that are under way at once: one is filled, one computes, one is copied back.
inline constexpr std::size_t kWindowsAtOnce = 3;

// Walks over `total` units, `most` at a time: calls begin(slot, first, count) of slots in turns,
// and slot.finish() of each before its next window and at the end, in order. make(slot) puts
// something there when it is first needed.
template <class Slot, class Make, class Begin>
void walk_windows(std::size_t total, std::size_t most, const Make& make, const Begin& begin) {
  std::array<std::optional<Slot>, kWindowsAtOnce> slots;
  std::size_t number = 0;
  for (std::size_t first = 0; first < total; first += most, ++number) {
    std::optional<Slot>& slot = slots[number % kWindowsAtOnce];
    if (!slot) make(slot);
    slot->finish();
    begin(*slot, first, std::min(most, total - first));
  }
  for (std::size_t left = 0; left < kWindowsAtOnce; ++left)
    if (auto& slot = slots[(number + left) % kWindowsAtOnce]) slot->finish();
}

// The same over the tiles of a set: calls slot.begin(window).
template <class Slot, class Make>
void walk_tiles(const UpdateSnapshot& set, std::size_t total, std::size_t most, const Make& make) {
  const std::size_t every = set.release_tiles();
  walk_windows<Slot>(total, most, make, [&](Slot& slot, std::size_t first, std::size_t count) {
    slot.begin({first, count});
    if (first / every != (first + count) / every) set.release_pages();
  });
}

}  // namespace veilsum
