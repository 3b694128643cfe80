// One device, and what is owned on it. Every failure is a DeviceError that says which call failed,
// on which device, over how many bytes.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "device/api.h"

namespace veilsum {

// What a test asks of launches (device/launch.h); zeros are the kernels' own choice.
struct LaunchShape {
  unsigned blocks = 0;
  unsigned threads = 0;
};
void use_launch_shape(LaunchShape shape);
// Who hears of launches from now on; null: nobody. It must outlive them.
void use_launch_clock(LaunchClock* clock);

class Device {
 public:
  Device(const DeviceApi& api, int number);

  const DeviceApi& api() const { return api_; }
  const std::string& name() const { return name_; }  // "cuda:0"
  std::size_t memory_bytes() const { return facts_.memory_bytes; }
  unsigned processors() const { return facts_.processors; }
  std::size_t shared_bytes() const { return facts_.shared_bytes; }  // of a block, at most
  int number() const { return number_; }
  const char* model() const { return facts_.name; }

  // Waits for all streams, those of other libraries too.
  void finish_everything() const noexcept;

  // Throws the DeviceError of a status that is not 0.
  void check(int status, const char* call, std::size_t bytes = 0) const;

 private:
  friend class OnDevice;

  const DeviceApi& api_;
  const int number_;
  const std::string name_;
  DeviceFacts facts_{};
};

using DeviceOwner = std::shared_ptr<const Device>;

// The devices of one way to run kernels. If there is none, `reason` says why.
std::vector<DeviceOwner> list_devices(const DeviceApi& api, std::string& reason);

// The device of this name: "cuda" is "cuda:0". Throws ConfigError if it is no name of a device, and
// DeviceError if there is no such device: nothing is moved to another one.
DeviceOwner open_device(const std::string& name);

// The device is the calling thread's for as long as this lives. The thread's own comes back
// afterwards: it may be another library's too.
class OnDevice {
 public:
  explicit OnDevice(const Device& device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  const Device& device_;
  int previous_ = 0;
};

// A stream of the device that is the calling thread's. What is waiting when it goes is waited for.
class DeviceStream {
 public:
  explicit DeviceStream(const Device& device);
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  const Device& device() const { return device_; }
  void* handle() const { return handle_; }
  Launch launch() const;  // of a kernel

  void synchronize() const;
  // The same for destructors: nothing is done any more on what is about to go.
  void drain() const noexcept;
  void to_device(void* to, const void* from, std::size_t bytes) const;
  void to_host(void* to, const void* from, std::size_t bytes) const;
  void clear(void* memory, std::size_t bytes) const;
  void clear_quietly(void* memory, std::size_t bytes) const noexcept;  // for destructors
  // What is done from now on waits for what another stream has to do now.
  void wait_for(void* other) const;

 private:
  const Device& device_;
  void* handle_ = nullptr;
};

// Host memory that a stream copies from or to must not go before it has: declare this behind it.
class DrainAtExit {
 public:
  explicit DrainAtExit(const DeviceStream& stream) : stream_(stream) {}
  ~DrainAtExit() { stream_.drain(); }
  DrainAtExit(const DrainAtExit&) = delete;
  DrainAtExit& operator=(const DrainAtExit&) = delete;

 private:
  const DeviceStream& stream_;
};

// Device memory that belongs to a stream, which must outlive it: it is freed behind what the
// stream still has to do.
class DeviceBuffer {
 public:
  DeviceBuffer(const DeviceStream& stream, std::size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  template <class T>
  T* as(std::size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + offset_bytes);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  const DeviceStream& stream_;
  void* memory_ = nullptr;
  std::size_t bytes_;
};

// Host memory from and to which copies go at full speed.
class PinnedBuffer {
 public:
  PinnedBuffer(const Device& device, std::size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  template <class T>
  T* as(std::size_t offset_bytes = 0) const {
    return reinterpret_cast<T*>(static_cast<unsigned char*>(memory_) + offset_bytes);
  }

 private:
  const Device& device_;
  void* memory_ = nullptr;
};

}  // namespace veilsum
