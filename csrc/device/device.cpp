#include "device/device.h"

#include <atomic>
#include <charconv>

#include "base/error.h"
#include "device/registry.h"

namespace veilsum {
namespace {

std::atomic<unsigned> launch_blocks{0};
std::atomic<unsigned> launch_threads{0};
std::atomic<LaunchClock*> launch_clock{nullptr};

// A destructor has nobody to tell.
void ignore(int) {}

}  // namespace

void use_launch_clock(LaunchClock* clock) { launch_clock = clock; }

void use_launch_shape(LaunchShape shape) {
  if (shape.threads % 32 != 0 || shape.threads > 256)
    throw ConfigError("a launch shape has a multiple of 32 threads, at most 256, got " +
                      std::to_string(shape.threads));
  launch_blocks = shape.blocks;
  launch_threads = shape.threads;
}

Device::Device(const DeviceApi& api, int number)
    : api_(api), number_(number), name_(std::string(api.name) + ":" + std::to_string(number)) {
  check(api.runtime->facts(number, &facts_), "reading the device's properties");
}

void Device::check(int status, const char* call, std::size_t bytes) const {
  if (status == 0) return;
  char text[512] = "";
  int out_of_memory = 0;
  api_.runtime->describe(status, text, sizeof text, &out_of_memory);
  std::string what = std::string(call) + " on " + name_;
  if (bytes != 0) what += " (" + std::to_string(bytes) + " bytes)";
  throw DeviceError(what + " failed: " + text, out_of_memory != 0
                                                   ? "free memory on the device, or use another one"
                                                   : std::string());
}

void Device::finish_everything() const noexcept {
  int previous = 0;
  int own = 0;
  if (api_.runtime->use_device(number_, &previous) != 0) return;
  ignore(api_.runtime->synchronize_device());
  ignore(api_.runtime->use_device(previous, &own));
}

std::vector<DeviceOwner> list_devices(const DeviceApi& api, std::string& reason) {
  char text[512] = "";
  const int count = api.runtime->device_count(text, sizeof text);
  reason = text;
  std::vector<DeviceOwner> devices;
  for (int number = 0; number < count; ++number)
    devices.push_back(std::make_shared<const Device>(api, number));
  return devices;
}

DeviceOwner open_device(const std::string& name) {
  const std::size_t colon = name.find(':');
  const std::string kind = name.substr(0, colon);
  int number = 0;
  if (colon != std::string::npos) {
    const char* const begin = name.data() + colon + 1;
    const char* const end = name.data() + name.size();
    const auto [parsed, error] = std::from_chars(begin, end, number);
    if (error != std::errc() || parsed != end || number < 0 || *begin == '0' * (end - begin > 1))
      throw ConfigError("'" + name + "' names no device", "write for example " + kind + ":0");
  }
  const DeviceApi& api = device_api(kind);
  char text[512] = "";
  const int count = api.runtime->device_count(text, sizeof text);
  if (count == 0) throw DeviceError("there is no device for backend '" + name + "': " + text);
  if (number >= count)
    throw DeviceError("there is no device '" + name + "': this machine has " +
                      std::to_string(count));
  return std::make_shared<const Device>(api, number);
}

OnDevice::OnDevice(const Device& device) : device_(device) {
  device.check(device.api_.runtime->use_device(device.number_, &previous_), "choosing the device");
}

OnDevice::~OnDevice() {
  int own;
  ignore(device_.api_.runtime->use_device(previous_, &own));
}

DeviceStream::DeviceStream(const Device& device) : device_(device) {
  device.check(device.api().runtime->create_stream(&handle_), "making a stream");
}

DeviceStream::~DeviceStream() {
  drain();
  ignore(device_.api().runtime->destroy_stream(handle_));
}

Launch DeviceStream::launch() const {
  LaunchClock* const clock = launch_clock;
  const bool heard = clock != nullptr && clock->hears(device_);
  return {handle_, launch_blocks, launch_threads, heard ? clock : nullptr};
}

void DeviceStream::synchronize() const {
  device_.check(device_.api().runtime->synchronize(handle_), "waiting for kernels and copies");
}

void DeviceStream::drain() const noexcept { ignore(device_.api().runtime->synchronize(handle_)); }

void DeviceStream::to_device(void* to, const void* from, std::size_t bytes) const {
  if (bytes == 0) return;
  device_.check(device_.api().runtime->to_device(to, from, bytes, handle_), "copying to the device",
                bytes);
}

void DeviceStream::to_host(void* to, const void* from, std::size_t bytes) const {
  if (bytes == 0) return;
  device_.check(device_.api().runtime->to_host(to, from, bytes, handle_), "copying to the host",
                bytes);
}

void DeviceStream::clear(void* memory, std::size_t bytes) const {
  if (bytes == 0) return;
  device_.check(device_.api().runtime->clear(memory, bytes, handle_), "clearing memory", bytes);
}

void DeviceStream::clear_quietly(void* memory, std::size_t bytes) const noexcept {
  if (bytes != 0) ignore(device_.api().runtime->clear(memory, bytes, handle_));
}

void DeviceStream::wait_for(void* other) const {
  const RuntimeApi& runtime = *device_.api().runtime;
  void* event = nullptr;
  device_.check(runtime.create_event(&event), "making an event");
  const int recorded = runtime.record(event, other);
  const int waits = recorded != 0 ? recorded : runtime.wait(handle_, event);
  ignore(runtime.destroy_event(event));
  device_.check(waits, "waiting for another stream");
}

DeviceBuffer::DeviceBuffer(const DeviceStream& stream, std::size_t bytes)
    : stream_(stream), bytes_(bytes) {
  if (bytes == 0) return;
  const Device& device = stream.device();
  device.check(device.api().runtime->allocate(&memory_, bytes, stream.handle()),
               "allocating memory", bytes);
}

DeviceBuffer::~DeviceBuffer() {
  if (memory_ != nullptr)
    ignore(stream_.device().api().runtime->release(memory_, stream_.handle()));
}

PinnedBuffer::PinnedBuffer(const Device& device, std::size_t bytes) : device_(device) {
  if (bytes == 0) return;
  device.check(device.api().runtime->allocate_pinned(&memory_, bytes),
               "allocating host memory for copies", bytes);
}

PinnedBuffer::~PinnedBuffer() {
  if (memory_ != nullptr) ignore(device_.api().runtime->release_pinned(memory_));
}

}  // namespace veilsum
