// Kernels of which the emulator's own tests know what is right and what is wrong with them.
#pragma once

#include <cstddef>

#include "device/launch.h"

namespace veilsum {

struct FaultJob {
  std::size_t count;     // a multiple of the threads of a block
  const unsigned* from;  // `count` of them
  unsigned* to;          // `count` of them
  unsigned* total;       // one
};

using FaultLauncher = int (*)(const Launch& launch, const FaultJob& job);

struct FaultLaunchers {
  // Right: the tests know their results.
  FaultLauncher sum;              // *total += every value
  FaultLauncher count_odd;        // *total += how many are odd
  FaultLauncher reverse_blocks;   // to: each block's values, last to first
  FaultLauncher keep_extremes;    // to[0], to[1], to[2] |= all, max= all, min= all
  FaultLauncher triple;           // to = 3 * from
  FaultLauncher rotate_in_warps;  // to: each value of the next lane

  // Memory.
  FaultLauncher read_past_the_end;
  FaultLauncher write_past_shared_memory;
  FaultLauncher load_misaligned;
  FaultLauncher read_unwritten_shared_memory;

  // Order: each is reverse_blocks or sum with something left out.
  FaultLauncher miss_a_barrier;
  FaultLauncher race_between_blocks;
  FaultLauncher depend_on_order;  // to: numbers of threads, first come first

  // Barriers and warps.
  FaultLauncher diverge_at_a_barrier;
  FaultLauncher disagree_on_a_mask;
  FaultLauncher wait_for_an_absent_lane;
  FaultLauncher name_a_mask_without_oneself;
  FaultLauncher shuffle_from_outside_the_mask;
  FaultLauncher name_lanes_beyond_the_block;
};

}  // namespace veilsum
