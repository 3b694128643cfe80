// Device memory, and host memory for copies, that is cleared before it is freed, whatever came in
// between. What a lost device holds, nobody can clear.
#pragma once

#include <cstddef>

#include "base/secret.h"
#include "device/device.h"

namespace veilsum {

class ClearedDeviceBuffer {
 public:
  ClearedDeviceBuffer(const DeviceStream& stream, std::size_t bytes)
      : stream_(stream), buffer_(stream, bytes) {}
  // In the stream's order: behind the kernels that use it, before it is freed.
  ~ClearedDeviceBuffer() { stream_.clear_quietly(buffer_.as<void>(), buffer_.bytes()); }
  ClearedDeviceBuffer(const ClearedDeviceBuffer&) = delete;
  ClearedDeviceBuffer& operator=(const ClearedDeviceBuffer&) = delete;

  template <class T>
  T* as() const {
    return buffer_.as<T>();
  }

 private:
  const DeviceStream& stream_;
  DeviceBuffer buffer_;
};

class WipedPinnedBuffer {
 public:
  WipedPinnedBuffer(const Device& device, std::size_t bytes)
      : buffer_(device, bytes), bytes_(bytes) {}
  ~WipedPinnedBuffer() { wipe_now(); }
  WipedPinnedBuffer(const WipedPinnedBuffer&) = delete;
  WipedPinnedBuffer& operator=(const WipedPinnedBuffer&) = delete;

  void wipe_now() const {
    if (bytes_ != 0) wipe(buffer_.as<void>(), bytes_);
  }
  template <class T>
  T* as() const {
    return buffer_.as<T>();
  }

 private:
  PinnedBuffer buffer_;
  std::size_t bytes_;
};

}  // namespace veilsum
