#include "device/device_bench.h"

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include "aggregate/tiles.h"
#include "base/error.h"
#include "device/timed_event.h"
#include "device/window_form.h"

namespace veilsum {
namespace {

constexpr std::size_t kUpdates = 16;  // of a window of the mean
constexpr unsigned kMixTurns = 4096;
constexpr std::size_t kMixBytesPerThread = 4;

// Once without a clock: the first launch of a kernel also loads it.
std::vector<double> time_work(const DeviceStream& stream, unsigned repeats,
                              const std::function<void()>& work) {
  work();
  const TimedEvent begin(stream.device());
  const TimedEvent end(stream.device());
  std::vector<double> seconds;
  for (unsigned repeat = 0; repeat < repeats; ++repeat) {
    begin.record(stream.handle());
    work();
    end.record(stream.handle());
    stream.synchronize();
    seconds.push_back(begin.seconds_until(end));
  }
  return seconds;
}

DeviceTimes time_copy(const DeviceStream& stream, std::size_t bytes, unsigned repeats) {
  const DeviceBuffer from(stream, bytes);
  const DeviceBuffer to(stream, bytes);
  stream.clear(from.as<void>(), bytes);
  const Device& device = stream.device();
  const auto work = [&] {
    device.check(device.api().runtime->copy(to.as<void>(), from.as<void>(), bytes, stream.handle()),
                 "copying on the device", bytes);
  };
  return {time_work(stream, repeats, work), 2.0 * static_cast<double>(bytes), 0};
}

DeviceTimes time_bus(const DeviceStream& stream, std::size_t bytes, unsigned repeats,
                     bool to_device) {
  const PinnedBuffer host(stream.device(), bytes);
  const DeviceBuffer memory(stream, bytes);
  const DrainAtExit drain(stream);
  std::fill_n(host.as<unsigned char>(), bytes, static_cast<unsigned char>(1));
  stream.clear(memory.as<void>(), bytes);
  stream.synchronize();
  const auto work = [&] {
    if (to_device)
      stream.to_device(memory.as<void>(), host.as<void>(), bytes);
    else
      stream.to_host(host.as<void>(), memory.as<void>(), bytes);
  };
  return {time_work(stream, repeats, work), static_cast<double>(bytes), 0};
}

DeviceTimes time_mix(const DeviceStream& stream, std::size_t bytes, unsigned repeats) {
  const std::size_t threads = std::max<std::size_t>(1, bytes / kMixBytesPerThread);
  const unsigned turns = threads < 4096 ? 16 : kMixTurns;  // tiny sizes are trials of the way here
  const DeviceBuffer results(stream, threads * sizeof(std::uint32_t));
  const Device& device = stream.device();
  const MixJob job = {threads, turns, results.as<std::uint32_t>()};
  const auto work = [&] {
    device.check(device.api().bench->mix(stream.launch(), job), "launching a mix of integers");
  };
  return {time_work(stream, repeats, work), 4.0 * static_cast<double>(threads),
          double{kMixOperations} * turns * static_cast<double>(threads)};
}

// --- the mean ------------------------------------------------------------------------------

struct MeanCase {
  const char* name;
  WindowForm form;
};

constexpr MeanCase kMeans[] = {
    {"mean_f32", {WindowCodes::f32, WindowScales::none, 0}},
    {"mean_f64", {WindowCodes::f64, WindowScales::none, 0}},
    {"mean_f16", {WindowCodes::f16, WindowScales::none, 0}},
    {"mean_bf16", {WindowCodes::bf16, WindowScales::none, 0}},
    {"mean_int8", {WindowCodes::int8, WindowScales::f32, 4096}},
    {"mean_int4", {WindowCodes::int4, WindowScales::f16, 64}},
    {"mean_nf4", {WindowCodes::nf4, WindowScales::f16, 64}},
    {"mean_fp4", {WindowCodes::fp4, WindowScales::f16, 64}},
    {"mean_fp8_e4m3", {WindowCodes::fp8_e4m3, WindowScales::f32, 4096}},
    {"mean_fp8_e5m2", {WindowCodes::fp8_e5m2, WindowScales::f32, 4096}},
    {"mean_sign", {WindowCodes::sign, WindowScales::f32, 4096}},
};

// A window of zeros: no kernel branches on a value that is within its limit.
DeviceTimes time_mean(const DeviceStream& stream, const WindowForm& form, std::size_t bytes,
                      unsigned repeats) {
  const std::size_t tiles = std::max<std::size_t>(1, bytes / (kUpdates * form.tile_bytes()));
  const std::size_t input_bytes = kUpdates * tiles * form.tile_bytes();
  const DeviceBuffer input(stream, input_bytes);
  stream.clear(input.as<void>(), input_bytes);
  std::vector<WindowTerm> terms;
  // Codes first, then scales: what is loaded sixteen bytes at a time is aligned so.
  const std::size_t scales_at = kUpdates * tiles * form.code_bytes();
  for (std::size_t tile = 0; tile < tiles; ++tile)
    for (std::size_t update = 0; update < kUpdates; ++update) {
      const std::size_t place = update * tiles + tile;
      terms.push_back({input.as<unsigned char>(place * form.code_bytes()),
                       input.as<unsigned char>(scales_at + place * form.scale_bytes()), 1, 0});
    }
  const std::vector<TileDivisor> divisors(tiles, {1.0 / kUpdates, 0});
  const std::vector<MeanFormat> formats(tiles * kTile / 64, MeanFormat::f32);
  const DeviceBuffer term(stream, terms.size() * sizeof(WindowTerm));
  const DeviceBuffer divisor(stream, tiles * sizeof(TileDivisor));
  const DeviceBuffer format(stream, formats.size() * sizeof(MeanFormat));
  const DeviceBuffer means(stream, tiles * kTile * sizeof(float));
  const DeviceBuffer beyond(stream, sizeof(std::uint32_t));
  const DrainAtExit drain(stream);
  stream.to_device(term.as<void>(), terms.data(), term.bytes());
  stream.to_device(divisor.as<void>(), divisors.data(), divisor.bytes());
  stream.to_device(format.as<void>(), formats.data(), format.bytes());
  stream.clear(beyond.as<void>(), beyond.bytes());
  stream.synchronize();
  const WindowSum sum = {.kind = form.codes,
                         .scale_format = form.scales,
                         .scale_block = form.scale_block,
                         .updates = kUpdates,
                         .tiles = tiles,
                         .term = term.as<WindowTerm>(),
                         .first = true,
                         .sums = nullptr,
                         .beyond = beyond.as<std::uint32_t>()};
  const WindowMeans wanted = {.tiles = tiles,
                              .total_weight = kUpdates,
                              .divisor = divisor.as<TileDivisor>(),
                              .format = format.as<MeanFormat>(),
                              .sums = nullptr,
                              .means = means.as<void>(),
                              .wide = false};
  const Device& device = stream.device();
  const auto work = [&] {
    device.check(device.api().mean->mean_window(stream.launch(), sum, wanted),
                 "launching the mean of a window", input_bytes);
  };
  return {time_work(stream, repeats, work), static_cast<double>(input_bytes + means.bytes()), 0};
}

// --- the list ------------------------------------------------------------------------------

using Benchmark = std::function<DeviceTimes(const DeviceStream&, std::size_t, unsigned)>;

const std::vector<std::pair<std::string, Benchmark>>& benchmarks() {
  static const auto all = [] {
    std::vector<std::pair<std::string, Benchmark>> list = {
        {"copy", time_copy},
        {"to_device", [](const auto& stream, auto bytes,
                         auto repeats) { return time_bus(stream, bytes, repeats, true); }},
        {"to_host", [](const auto& stream, auto bytes,
                       auto repeats) { return time_bus(stream, bytes, repeats, false); }},
        {"mix", time_mix},
    };
    for (const MeanCase& one : kMeans)
      list.emplace_back(one.name, [&one](const auto& stream, auto bytes, auto repeats) {
        return time_mean(stream, one.form, bytes, repeats);
      });
    return list;
  }();
  return all;
}

}  // namespace

std::vector<std::string> device_benchmarks() {
  std::vector<std::string> names;
  for (const auto& [name, run] : benchmarks()) names.push_back(name);
  return names;
}

DeviceTimes run_device_benchmark(const Device& device, const std::string& name, std::size_t bytes,
                                 unsigned repeats) {
  for (const auto& [known, run] : benchmarks())
    if (known == name) {
      const OnDevice on(device);
      const DeviceStream stream(device);
      return run(stream, bytes, repeats);
    }
  throw ConfigError("unknown benchmark '" + name + "'", "device_benchmarks() lists them");
}

}  // namespace veilsum
