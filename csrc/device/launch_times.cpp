#include "device/launch_times.h"

#include <algorithm>
#include <utility>

namespace veilsum {

LaunchTimes::LaunchTimes(DeviceOwner device) : device_(std::move(device)) {
  use_launch_clock(this);
}

LaunchTimes::~LaunchTimes() { use_launch_clock(nullptr); }

bool LaunchTimes::hears(const Device& device) const noexcept {
  return device.name() == device_->name();
}

std::size_t LaunchTimes::begin(const char* kernel, void* stream) noexcept {
  const std::scoped_lock lock(mutex_);
  try {
    launches_.emplace_back(kernel, *device_).began.record(stream);
  } catch (...) {
    if (!error_) error_ = std::current_exception();
  }
  return launches_.size();
}

void LaunchTimes::end(std::size_t launch, void* stream) noexcept {
  const std::scoped_lock lock(mutex_);
  if (error_) return;
  try {
    launches_[launch - 1].ended.record(stream);
  } catch (...) {
    error_ = std::current_exception();
  }
}

std::vector<KernelTime> LaunchTimes::sums() {
  const OnDevice on(*device_);
  const std::scoped_lock lock(mutex_);
  if (error_) std::rethrow_exception(error_);
  std::vector<KernelTime> sums;
  for (const Timed& one : launches_) {
    auto sum = std::ranges::find(sums, one.kernel, &KernelTime::kernel);
    if (sum == sums.end()) sum = sums.insert(sum, {one.kernel, 0, 0});
    ++sum->launches;
    sum->seconds += one.began.seconds_until(one.ended);
  }
  return sums;
}

}  // namespace veilsum
