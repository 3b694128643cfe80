// A moment in what a stream has to do, by the device's own clock.
#pragma once

#include "device/api.h"
#include "device/device.h"

namespace veilsum {

class TimedEvent {
 public:
  explicit TimedEvent(const Device& device) : device_(device) {
    device.check(device.api().runtime->create_timed_event(&handle_), "making an event");
  }
  ~TimedEvent() { static_cast<void>(device_.api().runtime->destroy_event(handle_)); }
  TimedEvent(const TimedEvent&) = delete;
  TimedEvent& operator=(const TimedEvent&) = delete;

  void record(void* stream) const {
    device_.check(device_.api().runtime->record(handle_, stream), "recording an event");
  }
  double seconds_until(const TimedEvent& end) const {
    float milliseconds = 0;
    device_.check(device_.api().runtime->elapsed(handle_, end.handle_, &milliseconds),
                  "reading the time between two events");
    return milliseconds / 1e3;
  }

 private:
  const Device& device_;
  void* handle_ = nullptr;
};

}  // namespace veilsum
