// Emulated devices: memory of exact size, streams whose work waits until somebody waits for it.
// So a copy that is not waited for has not happened, and memory that is freed too early is gone.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "device/api.h"
#include "emulator.h"
#include "settings.h"

namespace veilsum {
extern const DecodeLaunchers vs_emu_decode;
extern const EncodeLaunchers vs_emu_encode;
extern const GramLaunchers vs_emu_gram;
extern const MeanLaunchers vs_emu_mean;
extern const OrderLaunchers vs_emu_order;
extern const RotationLaunchers vs_emu_rotation;
extern const StepLaunchers vs_emu_step;
extern const TensorLaunchers vs_emu_tensors;
extern const MaskLaunchers vs_emu_masks;
extern const BenchLaunchers vs_emu_bench;
}  // namespace veilsum

namespace vs_emu {
namespace {

enum Status : int { ok, invalid, out_of_memory, fault };

struct Event {
  bool happened = true;  // an event that was never recorded holds nobody up
  std::chrono::steady_clock::time_point when{};
};

// Whoever waits for an event may do so longer than it has a handle.
using EventOwner = std::shared_ptr<Event>;

struct Work {
  std::string what;
  std::function<void()> run;
  EventOwner waits_for = nullptr;
  bool gives_back = false;  // also done when the device is lost
};

struct Stream {
  int device;
  std::deque<Work> work;
};

struct Devices {
  std::recursive_mutex mutex;  // one host thread at a time: the emulator has one OS thread
  Settings settings;
  std::mt19937_64 random{0};
  std::uint64_t calls = 0;
  std::size_t copied_bytes = 0;
  std::uint64_t needles_found = 0;
  std::vector<std::unique_ptr<Stream>> streams;
  std::map<void*, std::pair<std::size_t, int>> memory;  // bytes and device
  std::size_t used[kDevices] = {};
  std::map<void*, std::size_t> pinned;  // host memory for copies
  std::string fault;                    // of a kernel: the device is lost from then on
};

// Never destroyed: programs may end with streams alive.
Devices& devices() {
  static auto* const all = new Devices;
  return *all;
}

thread_local int current_device = 0;

using Lock = std::lock_guard<std::recursive_mutex>;

// Nothing is computed any more, on any stream.
void lose(const std::string& why) {
  devices().fault = why;
  for (const auto& stream : devices().streams)
    for (const Work& work : std::exchange(stream->work, {}))
      if (work.gives_back) work.run();
}

// Every call but those that give things back counts.
int begin_call() {
  Devices& all = devices();
  ++all.calls;
  const std::uint64_t at = all.settings.lost_at_call;
  if (all.fault.empty() && at != 0 && all.calls >= at) lose("the device is lost");
  return all.fault.empty() ? ok : fault;
}

bool can_run(const Stream& stream) {
  return !stream.work.empty() &&
         (stream.work.front().waits_for == nullptr || stream.work.front().waits_for->happened);
}

void run_next(Stream& stream) {
  Work work = std::move(stream.work.front());
  stream.work.pop_front();
  try {
    if (work.run) work.run();
  } catch (const std::exception& error) {
    lose(work.what + ": " + error.what());
  }
}

// Runs work of any stream until `done`, in an order that the seed decides.
template <class Done>
int run_until(const Done& done) {
  Devices& all = devices();
  while (!done()) {
    std::vector<Stream*> ready;
    for (const auto& stream : all.streams)
      if (can_run(*stream)) ready.push_back(stream.get());
    if (ready.empty()) return all.fault.empty() ? invalid : fault;
    run_next(*ready[all.settings.seed == 0 ? 0 : all.random() % ready.size()]);
    if (!all.fault.empty()) return fault;
  }
  return all.fault.empty() ? ok : fault;
}

bool is_ours(void* stream) {
  const auto& streams = devices().streams;
  return std::any_of(streams.begin(), streams.end(),
                     [&](const auto& own) { return own.get() == stream; });
}

Stream& stream_of(void* stream) { return *static_cast<Stream*>(stream); }

int device_count(char*, std::size_t) { return kDevices; }

int facts(int device, veilsum::DeviceFacts* found) {
  const Lock lock(devices().mutex);
  if (device < 0 || device >= kDevices) return invalid;
  if (const int status = begin_call()) return status;
  std::snprintf(found->name, sizeof found->name, "emulated device");
  found->memory_bytes = devices().settings.memory_bytes;
  found->processors = 1;
  found->shared_bytes = kMostShared;
  return ok;
}

int use_device(int device, int* previous) {
  *previous = current_device;
  if (device < 0 || device >= kDevices) return invalid;
  current_device = device;
  return ok;
}

// Streams of the other device too, which does no harm.
int synchronize_device() {
  const Lock lock(devices().mutex);
  if (!devices().fault.empty()) return fault;
  return run_until([] {
    const auto& streams = devices().streams;
    return std::none_of(streams.begin(), streams.end(),
                        [](const auto& stream) { return can_run(*stream); });
  });
}

int device_of(const void* memory, int* device) {
  const Lock lock(devices().mutex);
  auto found = devices().memory.upper_bound(const_cast<void*>(memory));
  if (found == devices().memory.begin()) return invalid;
  --found;
  const auto* const begin = static_cast<const char*>(found->first);
  if (static_cast<const char*>(memory) >= begin + found->second.first) return invalid;
  *device = found->second.second;
  return ok;
}

int create_stream(void** stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  devices().streams.push_back(std::make_unique<Stream>(Stream{current_device, {}}));
  *stream = devices().streams.back().get();
  return ok;
}

int destroy_stream(void* stream) {
  const Lock lock(devices().mutex);
  auto& streams = devices().streams;
  const auto found = std::find_if(streams.begin(), streams.end(),
                                  [&](const auto& own) { return own.get() == stream; });
  if (found == streams.end()) return invalid;
  while (can_run(**found)) run_next(**found);
  streams.erase(found);
  return ok;
}

int synchronize(void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  return run_until([&] { return stream_of(stream).work.empty(); });
}

const EventOwner& event_of(void* event) { return *static_cast<EventOwner*>(event); }

int create_event(void** event) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  *event = new EventOwner(std::make_shared<Event>());
  return ok;
}

int destroy_event(void* event) {
  delete static_cast<EventOwner*>(event);
  return ok;
}

int record(void* event, void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  const EventOwner own = event_of(event);
  if (!is_ours(stream)) return ok;  // a default stream, on which nobody else works
  own->happened = false;
  const auto happen = [own] {
    own->happened = true;
    own->when = std::chrono::steady_clock::now();
  };
  stream_of(stream).work.push_back({"record", happen, nullptr});
  return ok;
}

// The host's time, which says nothing about a device.
int elapsed(void* begin, void* end, float* milliseconds) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  if (!event_of(begin)->happened || !event_of(end)->happened) return invalid;
  const std::chrono::duration<float, std::milli> between =
      event_of(end)->when - event_of(begin)->when;
  *milliseconds = between.count();
  return ok;
}

int wait(void* stream, void* event) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  stream_of(stream).work.push_back({"wait", {}, event_of(event)});
  return ok;
}

int synchronize_event(void* event) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  return run_until([&] { return event_of(event)->happened; });
}

int allocate(void** memory, std::size_t bytes, void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  Devices& all = devices();
  const int device = stream_of(stream).device;
  if (bytes > all.settings.memory_bytes - all.used[device]) return out_of_memory;
  void* place = nullptr;
  if (posix_memalign(&place, 256, bytes) != 0) return out_of_memory;
  std::memset(place, 0xCD, bytes);
  all.memory[place] = {bytes, device};
  all.used[device] += bytes;
  *memory = place;
  return ok;
}

void forget(void* memory) {
  Devices& all = devices();
  const auto found = all.memory.find(memory);
  all.used[found->second.second] -= found->second.first;
  if (all.fault.empty()) check_left(memory, found->second.first);
  all.memory.erase(found);
  std::free(memory);
}

int release(void* memory, void* stream) {
  const Lock lock(devices().mutex);
  if (devices().memory.find(memory) == devices().memory.end()) return invalid;
  if (!devices().fault.empty())  // nothing runs any more
    forget(memory);
  else
    stream_of(stream).work.push_back({"release", [memory] { forget(memory); }, nullptr, true});
  return ok;
}

int allocate_pinned(void** memory, std::size_t bytes) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  if (posix_memalign(memory, 256, bytes) != 0) return out_of_memory;
  std::memset(*memory, 0xCD, bytes);
  devices().pinned[*memory] = bytes;
  return ok;
}

int release_pinned(void* memory) {
  const Lock lock(devices().mutex);
  const auto found = devices().pinned.find(memory);
  if (found == devices().pinned.end()) return invalid;
  check_left(memory, found->second);  // also when the device is lost: it is the host's
  devices().pinned.erase(found);
  std::free(memory);
  return ok;
}

int start_copy(const char* what, void* to, const void* from, std::size_t bytes, void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  stream_of(stream).work.push_back({what, [=] { std::memcpy(to, from, bytes); }, nullptr});
  return ok;
}

bool is_pinned(const void* place) {
  auto found = devices().pinned.upper_bound(const_cast<void*>(place));
  if (found == devices().pinned.begin()) return false;
  --found;
  return static_cast<const char*>(place) < static_cast<const char*>(found->first) + found->second;
}

// What is copied to host memory that is not pinned goes through memory of the driver's, which
// nobody clears.
int start_copy_to_host(void* to, const void* from, std::size_t bytes, void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  const auto run = [=, staged = !is_pinned(to)] {
    std::memcpy(to, from, bytes);
    if (staged) check_left(to, bytes);
  };
  stream_of(stream).work.push_back({"copy to the host", run, nullptr});
  return ok;
}

int to_device(void* to, const void* from, std::size_t bytes, void* stream) {
  {
    const Lock lock(devices().mutex);
    devices().copied_bytes += bytes;
  }
  return start_copy("copy to the device", to, from, bytes, stream);
}
int to_host(void* to, const void* from, std::size_t bytes, void* stream) {
  return start_copy_to_host(to, from, bytes, stream);
}

int copy(void* to, const void* from, std::size_t bytes, void* stream) {
  return start_copy("copy on the device", to, from, bytes, stream);
}

int clear(void* memory, std::size_t bytes, void* stream) {
  const Lock lock(devices().mutex);
  if (const int status = begin_call()) return status;
  stream_of(stream).work.push_back({"clear", [=] { std::memset(memory, 0, bytes); }, nullptr});
  return ok;
}

void describe(int status, char* text, std::size_t size, int* no_memory) {
  const Lock lock(devices().mutex);
  static constexpr const char* kTexts[] = {"no error", "invalid argument", "out of memory"};
  const char* known = status == fault                 ? devices().fault.c_str()
                      : status >= 0 && status < fault ? kTexts[status]
                                                      : "unknown status";
  std::snprintf(text, size, "%s", known);
  *no_memory = status == out_of_memory;
}

}  // namespace

void enqueue(void* stream, const char* what, std::function<void()> work) {
  const Lock lock(devices().mutex);
  // Never an error here: as on a device, a fault shows at the next call that waits.
  if (begin_call() == ok) stream_of(stream).work.push_back({what, std::move(work)});
}

void check_left(const void* memory, std::size_t bytes) {
  const std::string& needle = devices().settings.needle;
  if (!needle.empty() && memmem(memory, bytes, needle.data(), needle.size()) != nullptr)
    ++devices().needles_found;
}

std::uint64_t needles_found() {
  const Lock lock(devices().mutex);
  return devices().needles_found;
}

std::uint64_t seed() { return devices().settings.seed; }

void use(const Settings& settings) {
  const Lock lock(devices().mutex);
  Devices& all = devices();
  all.settings = settings;
  all.random.seed(settings.seed);
  all.calls = 0;
  all.copied_bytes = 0;
  all.needles_found = 0;
  all.fault.clear();
}

std::uint64_t calls() {
  const Lock lock(devices().mutex);
  return devices().calls;
}

std::size_t copied_bytes() {
  const Lock lock(devices().mutex);
  return devices().copied_bytes;
}

std::size_t allocated_bytes() {
  const Lock lock(devices().mutex);
  std::size_t bytes = 0;
  for (const std::size_t used : devices().used) bytes += used;
  return bytes;
}

}  // namespace vs_emu

namespace veilsum {
namespace {

constexpr RuntimeApi kRuntime = {
    vs_emu::device_count,
    vs_emu::facts,
    vs_emu::use_device,
    vs_emu::synchronize_device,
    vs_emu::device_of,
    vs_emu::create_stream,
    vs_emu::destroy_stream,
    vs_emu::synchronize,
    vs_emu::create_event,
    vs_emu::destroy_event,
    vs_emu::record,
    vs_emu::create_event,
    vs_emu::elapsed,
    vs_emu::wait,
    vs_emu::synchronize_event,
    vs_emu::allocate,
    vs_emu::release,
    vs_emu::allocate_pinned,
    vs_emu::release_pinned,
    vs_emu::to_device,
    vs_emu::to_host,
    vs_emu::copy,
    vs_emu::clear,
    vs_emu::describe,
};

}  // namespace

extern const DeviceApi vs_emu_api;
const DeviceApi vs_emu_api = {.name = "emu",
                              .runtime = &kRuntime,
                              .decode = &vs_emu_decode,
                              .encode = &vs_emu_encode,
                              .gram = &vs_emu_gram,
                              .mean = &vs_emu_mean,
                              .order = &vs_emu_order,
                              .rotation = &vs_emu_rotation,
                              .step = &vs_emu_step,
                              .tensors = &vs_emu_tensors,
                              .masks = &vs_emu_masks,
                              .bench = &vs_emu_bench};

}  // namespace veilsum
