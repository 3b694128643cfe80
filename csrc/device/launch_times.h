// How long kernels take on a device, whoever launches them.
#pragma once

#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/timed_event.h"

namespace veilsum {

struct KernelTime {
  std::string kernel;
  std::size_t launches;
  double seconds;  // of all of them
};

// Measures the launches on a device as long as it lives: one at a time in a process.
class LaunchTimes final : public LaunchClock {
 public:
  explicit LaunchTimes(DeviceOwner device);
  ~LaunchTimes() override;

  bool hears(const Device& device) const noexcept override;
  std::size_t begin(const char* kernel, void* stream) noexcept override;
  void end(std::size_t launch, void* stream) noexcept override;

  // By name, in the order of their first launches, all of which must have been waited for. Throws
  // DeviceError if one could not be measured.
  std::vector<KernelTime> sums();

 private:
  struct Timed {
    Timed(const char* name, const Device& device) : kernel(name), began(device), ended(device) {}
    const char* kernel;
    TimedEvent began;
    TimedEvent ended;
  };

  const DeviceOwner device_;
  std::mutex mutex_;
  std::deque<Timed> launches_;
  std::exception_ptr error_;  // the first
};

}  // namespace veilsum
