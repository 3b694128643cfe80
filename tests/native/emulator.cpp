// veilsum_emulator: right kernels give right answers on the emulated devices, and each planted
// fault is caught and named. A fault runs in a process of its own, because sanitizers end it.
//
// veilsum_emulator        runs all, and says which the build's sanitizers cannot show
// veilsum_emulator CASE   runs one here
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "device/device.h"
#include "device/registry.h"
#include "faults.h"
#include "settings.h"

#if defined(__SANITIZE_ADDRESS__)
#define VS_BUILD Build::address
#elif defined(__SANITIZE_THREAD__)
#define VS_BUILD Build::thread
#else
#define VS_BUILD Build::plain
#endif

namespace veilsum {

extern const FaultLaunchers vs_emu_faults;

namespace {

enum class Build { plain, address, thread };
constexpr Build kBuild = VS_BUILD;

constexpr std::size_t kCount = 512;
constexpr unsigned kThreads = 64;  // of a block: faults.cu

std::vector<unsigned> input() {
  std::vector<unsigned> values(kCount);
  for (std::size_t i = 0; i < kCount; ++i) values[i] = static_cast<unsigned>(i * 2654435761u);
  return values;
}

void require_equal(const std::vector<unsigned>& found, const std::vector<unsigned>& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (found.at(i) != expected[i]) {
      std::array<char, 96> text{};
      std::snprintf(text.data(), text.size(), "wrong result at %zu: 0x%08x, expected 0x%08x", i,
                    found[i], expected[i]);
      throw DeviceError(text.data());
    }
}

// A device with one stream, the memory of a FaultJob, and the input in it.
class Bench {
 public:
  Bench() : device_(open_device("emu")), on_(*device_), stream_(*device_) {
    stream_.to_device(from_.as<void>(), values_.data(), bytes(kCount));
    stream_.clear(total_.as<void>(), bytes(1));
  }
  // Copies from and to members may be waiting.
  ~Bench() { stream_.drain(); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  static std::size_t bytes(std::size_t count) { return count * sizeof(unsigned); }

  void start(FaultLauncher launcher) {
    const FaultJob job = {kCount, from_.as<unsigned>(), to_.as<unsigned>(), total_.as<unsigned>()};
    device_->check(launcher(stream_.launch(), job), "launching a kernel");
  }
  void set(const std::vector<unsigned>& first) {
    stream_.to_device(to_.as<void>(), first.data(), bytes(first.size()));
    stream_.synchronize();
  }
  std::vector<unsigned> to() { return read(to_, kCount); }
  unsigned total() { return read(total_, 1)[0]; }

  const Device& device() const { return *device_; }
  const DeviceStream& stream() const { return stream_; }
  const std::vector<unsigned>& values() const { return values_; }

 private:
  std::vector<unsigned> read(const DeviceBuffer& from, std::size_t count) {
    std::vector<unsigned> values(count);
    stream_.to_host(values.data(), from.as<void>(), bytes(count));
    stream_.synchronize();
    return values;
  }

  const std::vector<unsigned> values_ = input();
  const DeviceOwner device_;
  const OnDevice on_;
  const DeviceStream stream_;
  const DeviceBuffer from_{stream_, bytes(kCount)};
  const DeviceBuffer to_{stream_, bytes(kCount)};
  const DeviceBuffer total_{stream_, bytes(1)};
};

// --- what is right -----------------------------------------------------------------------

std::vector<unsigned> reversed(const std::vector<unsigned>& values, std::size_t run) {
  std::vector<unsigned> result(values.size());
  for (std::size_t i = 0; i < values.size(); ++i)
    result[i] = values[i / run * run + (run - 1 - i % run)];
  return result;
}

void check_sum(unsigned) {
  Bench bench;
  bench.start(vs_emu_faults.sum);
  require_equal({bench.total()},
                {std::accumulate(bench.values().begin(), bench.values().end(), 0u)});
}

void check_count_odd(unsigned) {
  Bench bench;
  bench.start(vs_emu_faults.count_odd);
  unsigned odd = 0;
  for (const unsigned value : bench.values()) odd += value & 1;
  require_equal({bench.total()}, {odd});
}

void check_reverse(unsigned threads) {
  Bench bench;
  bench.start(vs_emu_faults.reverse_blocks);
  require_equal(bench.to(), reversed(bench.values(), threads));
}

void check_extremes(unsigned) {
  Bench bench;
  bench.set({0, 0, 0xffffffffu});
  bench.start(vs_emu_faults.keep_extremes);
  unsigned any = 0, most = 0, least = 0xffffffffu;
  for (const unsigned value : bench.values()) {
    any |= value;
    most = std::max(most, value);
    least = std::min(least, value);
  }
  require_equal(bench.to(), {any, most, least});
}

void check_triple(unsigned) {
  Bench bench;
  bench.start(vs_emu_faults.triple);
  std::vector<unsigned> expected = bench.values();
  for (unsigned& value : expected) value *= 3;
  require_equal(bench.to(), expected);
}

void check_rotate(unsigned) {
  Bench bench;
  bench.start(vs_emu_faults.rotate_in_warps);
  std::vector<unsigned> expected(kCount);
  for (std::size_t i = 0; i < kCount; ++i) expected[i] = bench.values()[i / 32 * 32 + (i + 1) % 32];
  require_equal(bench.to(), expected);
}

// Every right kernel, in several orders of threads and blocks, and in every shape.
void run_right_kernels() {
  for (const std::uint64_t seed : {0, 1, 2, 3})
    for (const LaunchShape shape : {LaunchShape{0, 64}, {1, 32}, {3, 128}, {2, 256}}) {
      vs_emu::use({.seed = seed});
      use_launch_shape(shape);
      for (const auto check :
           {check_sum, check_count_odd, check_reverse, check_extremes, check_triple, check_rotate})
        check(shape.threads);
    }
  vs_emu::use({});
  use_launch_shape({});
}

// --- faults that a kernel's launch shows --------------------------------------------------------

void run_kernel(FaultLauncher FaultLaunchers::* kernel) {
  Bench bench;
  bench.start(vs_emu_faults.*kernel);
  bench.to();
}

// The same, for faults that show in what is computed.
void run_reversal(FaultLauncher FaultLaunchers::* kernel) {
  Bench bench;
  bench.start(vs_emu_faults.*kernel);
  require_equal(bench.to(), reversed(bench.values(), kThreads));
}

std::vector<unsigned> order_of(std::uint64_t seed) {
  vs_emu::use({.seed = seed});
  Bench bench;
  bench.start(vs_emu_faults.depend_on_order);
  return bench.to();
}

// --- faults of the host side ---------------------------------------------------------------

void use_a_copy_that_was_not_waited_for() {
  Bench bench;
  const PinnedBuffer copy(bench.device(), Bench::bytes(kCount));
  const DeviceBuffer source(bench.stream(), Bench::bytes(kCount));
  bench.stream().clear(source.as<void>(), source.bytes());
  bench.stream().to_host(copy.as<void>(), source.as<void>(), source.bytes());
  const unsigned arrived = *copy.as<unsigned>();
  bench.stream().synchronize();  // too late
  require_equal({arrived}, {0});
}

void overwrite_what_is_being_copied() {
  Bench bench;
  const PinnedBuffer source(bench.device(), Bench::bytes(1));
  *source.as<unsigned>() = 1;
  const DeviceBuffer target(bench.stream(), Bench::bytes(1));
  bench.stream().to_device(target.as<void>(), source.as<void>(), Bench::bytes(1));
  *source.as<unsigned>() = 2;
  unsigned arrived = 0;
  bench.stream().to_host(&arrived, target.as<void>(), Bench::bytes(1));
  bench.stream().synchronize();
  require_equal({arrived}, {1});
}

// Freed behind its own stream's work, while another stream has not come to it. In ascending order
// streams have their turn as they were made.
void free_memory_too_early() {
  const DeviceOwner device = open_device("emu");
  const OnDevice on(*device);
  const DeviceStream owner(*device);
  const DeviceStream other(*device);
  unsigned place = 0;
  {
    const DeviceBuffer memory(owner, Bench::bytes(1));
    other.to_host(&place, memory.as<void>(), Bench::bytes(1));
  }
  owner.synchronize();
  other.synchronize();
}

void read_memory_that_nobody_wrote() {
  Bench bench;
  require_equal({bench.to()[0]}, {0});
}

void ask_for_more_memory_than_there_is() {
  vs_emu::use({.memory_bytes = 1 << 20});
  Bench bench;
  const DeviceBuffer memory(bench.stream(), (1 << 20) + 256);
}

void lose_the_device() {
  vs_emu::use({.lost_at_call = 8});
  Bench bench;
  bench.start(vs_emu_faults.sum);
  bench.total();
}

// --- the list ------------------------------------------------------------------------------

struct Case {
  const char* name;
  std::function<void()> run;
  std::vector<const char*> report;  // all of it is in the report; nothing: there is none
  std::vector<Build> builds = {Build::plain, Build::address, Build::thread};
};

Case faulty(const char* name, FaultLauncher FaultLaunchers::* kernel,
            std::vector<const char*> report) {
  return {name, [=] { run_kernel(kernel); }, std::move(report)};
}

Case sanitized(Build build, const char* name, FaultLauncher FaultLaunchers::* kernel,
               std::vector<const char*> report) {
  return {name, [=] { run_kernel(kernel); }, std::move(report), {build}};
}

const std::vector<Case>& cases() {
  using F = FaultLaunchers;
  static const std::vector<Case> all = {
      {"right_kernels", run_right_kernels, {}},

      sanitized(
          Build::address, "read_past_the_end", &F::read_past_the_end,
          {"heap-buffer-overflow", "READ of size 4", "read_past_the_end_kernel", "faults.cu:"}),
      sanitized(Build::address, "write_past_shared_memory", &F::write_past_shared_memory,
                {"heap-buffer-overflow", "WRITE of size 4", "write_past_shared_memory_kernel",
                 "faults.cu:"}),
      faulty("load_misaligned", &F::load_misaligned,
             {"a kernel of the tests: a vector load is not aligned, block (0,0,0)"}),
      {"read_unwritten_shared_memory",
       [] { run_reversal(&F::read_unwritten_shared_memory); },
       {"wrong result at 0: 0xcdcdcdcd"}},

      {"miss_a_barrier",
       [] { run_reversal(&F::miss_a_barrier); },
       {"wrong result at 0: 0xcdcdcdcd"},
       {Build::plain, Build::address}},
      sanitized(Build::thread, "miss_a_barrier", &F::miss_a_barrier,
                {"ThreadSanitizer: data race", "miss_a_barrier_kernel", "faults.cu:"}),
      sanitized(Build::thread, "race_between_blocks", &F::race_between_blocks,
                {"ThreadSanitizer: data race", "race_between_blocks_kernel", "faults.cu:"}),
      {"depend_on_order", [] { require_equal(order_of(7), order_of(0)); }, {"wrong result at "}},

      faulty("diverge_at_a_barrier", &F::diverge_at_a_barrier,
             {"deadlock in block (0,0,0): 48 threads returned, waiting: t0 in __syncthreads"}),
      faulty("disagree_on_a_mask", &F::disagree_on_a_mask,
             {"__shfl_sync: lanes disagree on the mask or the call, block (0,0,0)"}),
      faulty("wait_for_an_absent_lane", &F::wait_for_an_absent_lane,
             {"deadlock in block (0,0,0): 2 threads returned, waiting: t0 in __syncwarp"}),
      faulty("name_a_mask_without_oneself", &F::name_a_mask_without_oneself,
             {"__ballot_sync: the calling lane is not in its own mask"}),
      faulty("shuffle_from_outside_the_mask", &F::shuffle_from_outside_the_mask,
             {"__shfl_sync: the source lane is not in the mask"}),
      faulty("name_lanes_beyond_the_block", &F::name_lanes_beyond_the_block,
             {"__ballot_sync: the mask names lanes that the block does not have"}),

      {"use_a_copy_that_was_not_waited_for",
       use_a_copy_that_was_not_waited_for,
       {"wrong result at 0: 0xcdcdcdcd"}},
      {"overwrite_what_is_being_copied",
       overwrite_what_is_being_copied,
       {"wrong result at 0: 0x00000002"}},
      {"free_memory_too_early",
       free_memory_too_early,
       {"heap-use-after-free", "freed by"},
       {Build::address}},
      {"read_memory_that_nobody_wrote",
       read_memory_that_nobody_wrote,
       {"wrong result at 0: 0xcdcdcdcd"}},
      {"ask_for_more_memory_than_there_is",
       ask_for_more_memory_than_there_is,
       {"allocating memory on emu:0 (1048832 bytes) failed: out of memory"}},
      {"lose_the_device", lose_the_device, {"failed: the device is lost"}},
  };
  return all;
}

bool shows(const Case& one) {
  return std::find(one.builds.begin(), one.builds.end(), kBuild) != one.builds.end();
}

int run_here(std::string_view name) {
  for (const Case& one : cases())
    if (name == one.name && shows(one)) try {
        one.run();
        return 0;
      } catch (const Error& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
      }
  std::fprintf(stderr, "error: there is no case %s here\n", std::string(name).c_str());
  return 2;
}

// What a process of its own writes, and whether it says that all went well.
struct Outcome {
  std::string report;
  bool passed;
};

Outcome run_apart(const std::string& program, const Case& one) {
  Outcome outcome{"", false};
  std::FILE* const output = popen(("'" + program + "' " + one.name + " 2>&1").c_str(), "r");
  if (output == nullptr) throw ConfigError("cannot start " + program);
  std::array<char, 4096> part{};
  while (const std::size_t size = std::fread(part.data(), 1, part.size(), output))
    outcome.report.append(part.data(), size);
  outcome.passed = pclose(output) == 0;
  return outcome;
}

bool as_expected(const Case& one, const Outcome& outcome) {
  if (outcome.passed != one.report.empty()) return false;
  for (const char* const text : one.report)
    if (outcome.report.find(text) == std::string::npos) return false;
  return true;
}

int run_all(const std::string& program) {
  int failures = 0;
  for (const Case& one : cases()) {
    if (!shows(one)) continue;
    const Outcome outcome = run_apart(program, one);
    const bool good = as_expected(one, outcome);
    std::printf("%s %s\n", good ? "ok    " : "FAILED", one.name);
    if (!good) std::printf("%s\n", outcome.report.c_str());
    failures += !good;
  }
  return failures == 0 ? 0 : 1;
}

std::string own_path() {
  std::array<char, 4096> path{};
  const ssize_t size = readlink("/proc/self/exe", path.data(), path.size());
  if (size <= 0) throw ConfigError("cannot read /proc/self/exe");
  return std::string(path.data(), static_cast<std::size_t>(size));
}

}  // namespace
}  // namespace veilsum

int main(int count, char** arguments) {
  if (count == 2) return veilsum::run_here(arguments[1]);
  if (count == 1) return veilsum::run_all(veilsum::own_path());
  std::fprintf(stderr, "usage: veilsum_emulator [CASE]\n");
  return 2;
}
