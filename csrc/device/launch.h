// How a kernel is launched.
#pragma once

#include <cstddef>

namespace veilsum {

class Device;

// Hears of launches, of whatever thread: a benchmark's. An error it keeps to itself.
class LaunchClock {
 public:
  virtual ~LaunchClock() = default;
  // Whether it wants to hear of those on this device.
  virtual bool hears(const Device& device) const noexcept = 0;
  // Just before the kernel is handed to the stream, and just after; end() gets what begin() gave.
  virtual std::size_t begin(const char* kernel, void* stream) noexcept = 0;
  virtual void end(std::size_t launch, void* stream) noexcept = 0;
};

// Results are the same for every shape: a test picks some, everybody else leaves zeros.
struct Launch {
  void* stream;
  unsigned blocks;     // most blocks; 0: as many as the kernel likes
  unsigned threads;    // per block, a multiple of 32; 0: as many as the kernel likes
  LaunchClock* clock;  // null: nobody measures
};

}  // namespace veilsum
