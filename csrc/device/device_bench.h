// Times of copies and kernels by themselves, for bench/gpu.py: whole rounds are timed from outside.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "device/device.h"

namespace veilsum {

struct DeviceTimes {
  std::vector<double> seconds;  // of each repetition, by the device's own clock
  double bytes;                 // of device memory or of the bus that a repetition reads and writes
  double operations;            // of integers; 0 where memory is what counts
};

// What can be timed: "copy", "to_device", "to_host", "mix" and "mean_<codes>".
std::vector<std::string> device_benchmarks();

// Times one of them on about `bytes` bytes of input. Throws ConfigError for an unknown name, and
// DeviceError.
DeviceTimes run_device_benchmark(const Device& device, const std::string& name, std::size_t bytes,
                                 unsigned repeats);

}  // namespace veilsum
