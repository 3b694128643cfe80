// Updates whose tensors lie in device memory already: they are taken where they are.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "aggregate/update_set.h"
#include "codec/gather.h"
#include "codec/layout.h"
#include "device/device.h"
#include "device/window_form.h"

namespace veilsum {

// The floating-point tensors of one update, on a device. Refers to the layout.
class ResidentTensors {
 public:
  // `tensors` has a device address for every tensor of group 1; others are not looked at.
  ResidentTensors(DeviceOwner device, const Layout& layout, TensorData tensors);

  const Device& device() const { return *device_; }
  DeviceTensors table() const;

  // The form in which whole tiles of one tensor can be taken as they are.
  WindowForm form() const { return form_; }
  // Where the tile's values lie in that form; null if they do not lie together.
  const unsigned char* in_place(const Tile& tile) const;

  // What is noted on arrival. Throws PeerError, naming the tensor, if a value is not finite.
  std::vector<Screened> screen(const std::string& site, Screening screening) const;

  // Values of one tile on the host: for those who take few.
  void values(const Tile& tile, std::span<float> out) const;
  void values(const Tile& tile, std::span<double> out) const;

 private:
  template <class Value>
  void copy_values(const Tile& tile, std::span<Value> out) const;
  [[noreturn]] void refuse_not_finite(const std::string& site, std::size_t tile) const;

  const DeviceOwner device_;
  const Layout& layout_;
  const WindowForm form_;
  std::vector<DeviceTensor> tensors_;  // ascending, without empty ones
  mutable std::mutex mutex_;           // of the stream
  std::optional<DeviceStream> stream_;
  std::optional<DeviceBuffer> table_;
};

// Screens tensors where they lie and keeps references to them: those of group 1 on the device,
// those of group 2 in host memory. Throws as ResidentTensors::screen and UpdateReader::read.
CommittedUpdate borrow_resident(const Layout& layout, const std::string& site, DeviceOwner device,
                                TensorData tensors, Owner owner, unsigned threads,
                                Screening screening);

}  // namespace veilsum
