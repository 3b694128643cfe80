// How a kernel is launched.
#pragma once

namespace veilsum {

// Results are the same for every shape: a test picks some, everybody else leaves zeros.
struct Launch {
  void* stream;
  unsigned blocks;   // most blocks; 0: as many as the kernel likes
  unsigned threads;  // per block, a multiple of 32; 0: as many as the kernel likes
};

}  // namespace veilsum
