// veilsum_emulated_kernels: every family of kernels on the emulated devices, in several orders of
// threads, blocks and streams and in several shapes. Results must not depend on them; and under
// the thread sanitizer any two threads that touch one place without an order between them are
// reported, whatever the schedule was.
//
// A family is one function that puts its input on a stream, launches, and returns the bytes of the
// result, and one line of kFamilies.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "device/device.h"
#include "device/registry.h"
#include "settings.h"

namespace veilsum {
namespace {

using Result = std::vector<unsigned char>;

constexpr std::size_t kTile = 4096;

// --- helpers of families -------------------------------------------------------------------

std::vector<unsigned char> random_bytes(std::size_t count, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<unsigned char> bytes(count);
  for (unsigned char& byte : bytes) byte = static_cast<unsigned char>(random());
  return bytes;
}

// Device memory with a copy of host values, which must live until the stream is waited for.
template <class T>
class OnDeviceCopy {
 public:
  OnDeviceCopy(const DeviceStream& stream, std::vector<T> values)
      : values_(std::move(values)), memory_(stream, values_.size() * sizeof(T)) {
    stream.to_device(memory_.as<void>(), values_.data(), memory_.bytes());
  }
  T* at(std::size_t place = 0) const { return memory_.as<T>(place * sizeof(T)); }

 private:
  const std::vector<T> values_;
  const DeviceBuffer memory_;
};

Result read(const DeviceStream& stream, const DeviceBuffer& from) {
  Result result(from.bytes());
  stream.to_host(result.data(), from.as<void>(), from.bytes());
  stream.synchronize();
  return result;
}

void append(Result& all, const Result& more) { all.insert(all.end(), more.begin(), more.end()); }

// --- the mean ------------------------------------------------------------------------------

constexpr std::size_t kUpdates = 5;
constexpr std::size_t kTiles = 2;

// Codes of any pattern: what the values are does not matter here. Scales are floats or halves.
Result mean_of_kind(const DeviceStream& stream, WindowCodes kind, WindowScales scales) {
  const std::size_t tile_bytes = kTile * sizeof(double);
  const OnDeviceCopy<unsigned char> codes(stream, random_bytes(kUpdates * kTiles * tile_bytes, 1));
  const OnDeviceCopy<float> factors(stream, std::vector<float>(kTiles * kTile, 0.75F));
  std::vector<WindowTerm> terms;
  for (std::size_t i = 0; i < kUpdates * kTiles; ++i)
    terms.push_back({codes.at(i * tile_bytes), reinterpret_cast<unsigned char*>(factors.at()),
                     0x1p20, ~std::uint64_t{0}});
  const OnDeviceCopy<WindowTerm> term(stream, terms);
  const OnDeviceCopy<TileDivisor> divisor(stream, std::vector<TileDivisor>(kTiles, {0x1p-23, 20}));
  const OnDeviceCopy<MeanFormat> format(
      stream, std::vector<MeanFormat>(kTiles * kTile / 64, MeanFormat::f32));
  const DeviceBuffer sums(stream, kTiles * kTile * sizeof(std::uint64_t));
  const DeviceBuffer means(stream, kTiles * kTile * sizeof(float));
  const DeviceBuffer fused(stream, kTiles * kTile * sizeof(float));
  const DeviceBuffer beyond(stream, sizeof(std::uint32_t));
  stream.clear(beyond.as<void>(), beyond.bytes());

  const WindowSum sum = {.kind = kind,
                         .scale_format = scales,
                         .scale_block = scales == WindowScales::none ? 0u : 64u,
                         .updates = kUpdates,
                         .tiles = kTiles,
                         .term = term.at(),
                         .first = true,
                         .sums = sums.as<std::uint64_t>(),
                         .beyond = beyond.as<std::uint32_t>()};
  WindowMeans wanted = {.tiles = kTiles,
                        .total_weight = 8,
                        .divisor = divisor.at(),
                        .format = format.at(),
                        .sums = sums.as<std::uint64_t>(),
                        .means = means.as<void>(),
                        .wide = false};
  const MeanLaunchers& kernels = *stream.device().api().mean;
  stream.device().check(kernels.sum_window(stream.launch(), sum), "sum_window");
  stream.device().check(kernels.take_means(stream.launch(), wanted), "take_means");
  wanted.means = fused.as<void>();
  stream.device().check(kernels.mean_window(stream.launch(), sum, wanted), "mean_window");
  Result all = read(stream, sums);
  append(all, read(stream, means));
  append(all, read(stream, fused));
  append(all, read(stream, beyond));
  return all;
}

Result run_mean(const DeviceStream& stream) {
  Result all;
  for (std::size_t kind = 0; kind < kWindowCodes; ++kind)
    append(all, mean_of_kind(stream, static_cast<WindowCodes>(kind),
                             kind < 4 ? WindowScales::none : WindowScales::f32));
  return all;
}

// --- steps ---------------------------------------------------------------------------------

// Two tensors with a gap between them, of two formats, over two tiles; all values are zeros before.
Result stepped(const DeviceStream& stream, OptimizerKind kind, MeanFormat format, bool wide) {
  constexpr std::uint32_t kFirst = 4500;
  constexpr std::uint32_t kSecond = 3000;
  constexpr std::size_t kArray = kFirst * sizeof(double);
  const OnDeviceCopy<double> means(stream, std::vector<double>(kTiles * kTile, 0.375));
  const OnDeviceCopy<float> narrow(stream, std::vector<float>(kTiles * kTile, 0.375F));
  const DeviceBuffer memory(stream, 6 * kArray);
  stream.clear(memory.as<void>(), memory.bytes());
  const auto array = [&](std::size_t number) { return memory.as<unsigned char>(number * kArray); };
  const OnDeviceCopy<StepPart> part(
      stream, {{0, kFirst, MeanFormat::f32, array(0), array(1), array(2), array(0)},
               {4544, kSecond, format, array(3), array(4), array(5), array(3)}});
  std::vector<std::uint32_t> blocks(kTiles * kTile / 64, kNoPart);
  std::fill_n(blocks.begin(), (kFirst + 63) / 64, 0u);
  std::fill_n(blocks.begin() + 4544 / 64, (kSecond + 63) / 64, 1u);
  const OnDeviceCopy<std::uint32_t> part_of(stream, blocks);
  const DeviceBuffer unfit(stream, sizeof(std::uint32_t));
  stream.clear(unfit.as<void>(), unfit.bytes());
  const WindowStep job = {.kind = kind,
                          .rule = {0.1, 1, 0.9, 0.1, 0.99, 0.01, 1e-3},
                          .tiles = kTiles,
                          .part = part.at(),
                          .parts = 2,
                          .part_of = part_of.at(),
                          .means = wide ? static_cast<const void*>(means.at()) : narrow.at(),
                          .wide = wide,
                          .unfit = unfit.as<std::uint32_t>()};
  for (int step = 0; step < 2; ++step)
    stream.device().check(stream.device().api().step->step_window(stream.launch(), job), "step");
  Result all = read(stream, unfit);
  append(all, read(stream, memory));
  return all;
}

Result run_step(const DeviceStream& stream) {
  Result all;
  for (std::size_t number = 0; number < kOptimizerKinds; ++number) {
    const auto kind = static_cast<OptimizerKind>(number);
    append(all, stepped(stream, kind, MeanFormat::f16, false));
    append(all, stepped(stream, kind, MeanFormat::bf16, false));
    append(all, stepped(stream, kind, MeanFormat::f64, true));
  }
  return all;
}

// --- masked sums ---------------------------------------------------------------------------

// Three tiles and a part, from inside a tile on; more keys than go through shared memory at once.
Result masks_of(const DeviceStream& stream, bool aes, bool wide) {
  constexpr std::size_t kWords = 1700;
  constexpr std::size_t kKeys = 9;
  const OnDeviceCopy<unsigned char> keys(
      stream, random_bytes(kKeys * (aes ? sizeof(DeviceAesKey) : sizeof(DeviceChaChaKey)), 5));
  const DeviceBuffer sums(stream, kWords * (wide ? 8 : 4));
  stream.clear(sums.as<void>(), sums.bytes());
  const MaskWindow window = {.sums = {sums.as<void>(), kWords, wide},
                             .aes = aes,
                             .keys = keys.at(),
                             .added = 5,
                             .subtracted = kKeys - 5,
                             .stream = 1,
                             .bits = wide ? 41u : 22u,
                             .first = 300};
  stream.device().check(stream.device().api().masks->add_masks(stream.launch(), window), "masks");
  return read(stream, sums);
}

Result packed_of(const DeviceStream& stream, bool wide) {
  constexpr std::size_t kWords = 1700;
  constexpr std::size_t kUploads = 3;
  const unsigned bits = wide ? 41 : 22;
  const std::size_t stride = packed_stride(kWords, bits);
  const OnDeviceCopy<unsigned char> strings(stream, random_bytes(kUploads * stride, 6));
  const DeviceBuffer sums(stream, kWords * (wide ? 8 : 4));
  stream.clear(sums.as<void>(), sums.bytes());
  const PackedWindow window = {
      {sums.as<void>(), kWords, wide}, strings.at(), kUploads, stride, bits};
  stream.device().check(stream.device().api().masks->add_packed(stream.launch(), window), "packed");
  return read(stream, sums);
}

Result run_masks(const DeviceStream& stream) {
  Result all;
  for (const bool wide : {false, true}) {
    for (const bool aes : {false, true}) append(all, masks_of(stream, aes, wide));
    append(all, packed_of(stream, wide));
  }
  return all;
}

// --- rules ---------------------------------------------------------------------------------

// Rows of small floats with many ties, one behind the other, and where each starts.
template <class Value>
struct Rows {
  Rows(const DeviceStream& stream, std::size_t count, std::size_t tiles)
      : values(stream, small_values(count * tiles * kTile)) {
    for (std::size_t r = 0; r < count; ++r)
      starts.push_back(reinterpret_cast<const unsigned char*>(values.at(r * tiles * kTile)));
  }
  static std::vector<Value> small_values(std::size_t count) {
    std::vector<Value> all(count);
    const std::vector<unsigned char> bytes = random_bytes(count, 2);
    for (std::size_t i = 0; i < count; ++i) all[i] = static_cast<Value>(bytes[i] - 128) / 16;
    return all;
  }

  const OnDeviceCopy<Value> values;
  std::vector<const unsigned char*> starts;
};

// `in_memory`: sorted there, as columns are that no shared memory holds.
template <class Value>
Result ordered(const DeviceStream& stream, std::size_t count, ColumnRule rule, bool in_memory) {
  constexpr bool kWide = sizeof(Value) == sizeof(double);
  const Rows<Value> rows(stream, count, 1);
  const OnDeviceCopy<const unsigned char*> row(stream, rows.starts);
  const OnDeviceCopy<MeanFormat> format(
      stream, std::vector<MeanFormat>(kTile / 64, kWide ? MeanFormat::f64 : MeanFormat::f32));
  const DeviceBuffer results(stream, kTile * sizeof(Value));
  const DeviceBuffer scratch(
      stream, in_memory ? kTile / kOrderPiece * sorted_piece_bytes(count, kWide) : 0);
  const ColumnOrder order = {.rule = rule,
                             .wide = kWide,
                             .tiles = 1,
                             .rows = count,
                             .row = row.at(),
                             .first = 1,
                             .kept = count - 2,
                             .reciprocal = 1.0 / static_cast<double>(count - 2),
                             .format = format.at(),
                             .scratch = scratch.as<void>(),
                             .results = results.as<void>()};
  const OrderLaunchers& kernels = *stream.device().api().order;
  stream.device().check(kernels.order_columns(stream.launch(), order), "order_columns");
  return read(stream, results);
}

template <class Value>
Result mixed(const DeviceStream& stream) {
  const Rows<Value> rows(stream, 3, 1);
  const DeviceBuffer means(stream, kTile * sizeof(Value));
  const OnDeviceCopy<MixTerm> term(stream,
                                   {{rows.starts[0], 1}, {rows.starts[1], 2}, {rows.starts[2], 4}});
  const OnDeviceCopy<MixRow> row(stream, {{means.as<unsigned char>(), 0, 3, 7, 1.0 / 7}});
  const OnDeviceCopy<int> exponent(stream, {40});
  const RowMeans job = {.wide = sizeof(Value) == sizeof(double),
                        .tiles = 1,
                        .rows = 1,
                        .row = row.at(),
                        .term = term.at(),
                        .exponent = exponent.at()};
  const OrderLaunchers& kernels = *stream.device().api().order;
  stream.device().check(kernels.mean_rows(stream.launch(), job), "mean_rows");
  return read(stream, means);
}

template <class Value>
void append_orders(const DeviceStream& stream, Result& all) {
  append(all, mixed<Value>(stream));
  for (const ColumnRule rule : {ColumnRule::median, ColumnRule::middle, ColumnRule::nearest}) {
    for (const std::size_t count : {3, 7, 40})
      append(all, ordered<Value>(stream, count, rule, false));
    append(all, ordered<Value>(stream, 40, rule, true));
  }
}

Result run_order(const DeviceStream& stream) {
  Result all;
  append_orders<float>(stream, all);
  append_orders<double>(stream, all);
  return all;
}

template <class Value>
Result multiplied(const DeviceStream& stream) {
  constexpr std::size_t kRows = 18;                        // three tiles of pairs
  constexpr std::size_t kSomeTiles = kGramRangeTiles + 1;  // two ranges
  const Rows<Value> rows(stream, kRows, kSomeTiles);
  std::vector<GramRow> table;
  for (const unsigned char* start : rows.starts) table.push_back({start, 0.25});
  const OnDeviceCopy<GramRow> row(stream, table);
  const DeviceBuffer gram(stream, 2 * kRows * (kRows + 1) / 2 * sizeof(double));
  WindowGram window = {.wide = sizeof(Value) == sizeof(double),
                       .tiles = kSomeTiles,
                       .rows = kRows,
                       .row = row.at(),
                       .first = true,
                       .gram = gram.as<double>()};
  const GramLaunchers& kernels = *stream.device().api().gram;
  stream.device().check(kernels.add_window(stream.launch(), window), "add_window");
  window.first = false;
  window.tiles = 1;
  stream.device().check(kernels.add_window(stream.launch(), window), "add_window");
  return read(stream, gram);
}

Result run_gram(const DeviceStream& stream) {
  Result all = multiplied<float>(stream);
  append(all, multiplied<double>(stream));
  return all;
}

// --- tensors in device memory ----------------------------------------------------------------

// Two tensors with a gap between them, over two tiles and a part.
Result run_tensors(const DeviceStream& stream) {
  constexpr std::uint64_t kFirst = 4500;
  constexpr std::uint64_t kSecond = 4608;
  constexpr std::size_t kSomeTiles = 3;
  const OnDeviceCopy<float> a(stream, Rows<float>::small_values(kFirst));
  const OnDeviceCopy<double> b(stream, Rows<double>::small_values(kSecond));
  const OnDeviceCopy<DeviceTensor> tensor(
      stream, {{reinterpret_cast<unsigned char*>(a.at()), 0, kFirst, MeanFormat::f32},
               {reinterpret_cast<unsigned char*>(b.at()), 4544, kSecond, MeanFormat::f64}});
  const DeviceTensors tensors = {tensor.at(), 2, 4544 + kSecond};
  const DeviceBuffer largest(stream, kSomeTiles * sizeof(std::uint64_t));
  const DeviceBuffer squares(stream, kSomeTiles * sizeof(double));
  const DeviceBuffer gathered(stream, 2 * kTile * sizeof(double));
  const OnDeviceCopy<GatheredTile> tile(stream, {{1, gathered.as<unsigned char>(), 0},
                                                 {2, gathered.as<unsigned char>(kTile * 8), 0}});
  const DeviceBuffer beyond(stream, sizeof(std::uint32_t));
  stream.clear(beyond.as<void>(), beyond.bytes());
  const TensorLaunchers& kernels = *stream.device().api().tensors;
  stream.device().check(
      kernels.screen(stream.launch(),
                     {tensors, kSomeTiles, largest.as<std::uint64_t>(), squares.as<double>()}),
      "screen");
  stream.device().check(kernels.gather(stream.launch(), {tensors, 2, tile.at(), WindowCodes::f64,
                                                         beyond.as<std::uint32_t>()}),
                        "gather");
  Result all = read(stream, largest);
  append(all, read(stream, squares));
  append(all, read(stream, gathered));
  append(all, read(stream, beyond));
  return all;
}

// --- rotation and decoding -------------------------------------------------------------------

template <class Value>
Result rotated(const DeviceStream& stream, unsigned block, bool inverse) {
  constexpr std::size_t kValues = kTile + 64 * 37;  // blocks get smaller at the end
  const std::vector<Value> values = Rows<Value>::small_values(kValues);
  const DeviceBuffer memory(stream, kValues * sizeof(Value));
  stream.to_device(memory.as<void>(), values.data(), memory.bytes());
  const RotateValues job = {.values = memory.as<void>(),
                            .wide = sizeof(Value) == sizeof(double),
                            .count = kValues,
                            .first = kTile,
                            .group = 1,
                            .block = block,
                            .key = {{3, 4}},
                            .inverse = inverse};
  stream.device().check(stream.device().api().rotation->rotate(stream.launch(), job), "rotate");
  return read(stream, memory);
}

Result run_rotation(const DeviceStream& stream) {
  Result all;
  for (const unsigned block : {64, 256, 1024, 4096})
    for (const bool inverse : {false, true}) {
      append(all, rotated<float>(stream, block, inverse));
      append(all, rotated<double>(stream, block, inverse));
    }
  return all;
}

// Every other block is there of a subsample. Indices ascend, so that no two are alike.
PackedTile packed_tile(const DecodeTiles& job) {
  PackedTile tile = {};
  tile.count = 64 * 50;  // a short tile
  tile.key = {{3, 4}};
  tile.kept = job.subsampled ? 0x5555555555555555u : ~std::uint64_t{0};
  tile.gain = job.subsampled ? 2 : 1;
  tile.entries = 100;
  tile.skipped = 1;
  return tile;
}

std::vector<unsigned char> ascending_indices(std::size_t count) {
  std::vector<unsigned char> bytes(count / 2 * 3 + 4);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t at = i / 2 * 3 + i % 2;
    const auto index = static_cast<unsigned>(31 * i) << 4 * (i % 2);
    bytes[at] |= static_cast<unsigned char>(index);
    bytes[at + 1] |= static_cast<unsigned char>(index >> 8);
  }
  return bytes;
}

Result decoded(const DeviceStream& stream, DecodeTiles job) {
  const bool topk = job.packing == WindowPacking::topk;
  const OnDeviceCopy<unsigned char> codes(
      stream, topk ? ascending_indices(128) : random_bytes(kTile * job.bits / 8 + 16, 7));
  const OnDeviceCopy<double> steps(stream, std::vector<double>(kTile / 64, 0.75));
  const OnDeviceCopy<float> scales(stream, std::vector<float>(kTile / 32, 0.75F));
  const OnDeviceCopy<std::uint8_t> ends(stream, std::vector<std::uint8_t>(kTile / 64, 60));
  const DeviceBuffer values(stream, kTile * (job.wide ? sizeof(double) : sizeof(float)));
  PackedTile own = packed_tile(job);
  own.codes = codes.at();
  own.scales = job.packing == WindowPacking::ring ? reinterpret_cast<unsigned char*>(steps.at())
                                                  : reinterpret_cast<unsigned char*>(scales.at());
  own.ends = ends.at();
  own.values = values.as<void>();
  const OnDeviceCopy<PackedTile> tile(stream, {own});
  job.group = 1;
  job.tiles = 1;
  job.tile = tile.at();
  stream.device().check(stream.device().api().decode->decode(stream.launch(), job), "decode");
  return read(stream, values);
}

// Without its tiles.
DecodeTiles decoding(WindowPacking packing, unsigned bits) {
  DecodeTiles job = {};
  job.packing = packing;
  job.bits = bits;
  job.scale_block = 64;
  return job;
}

void append_codes(const DeviceStream& stream, Result& all) {
  constexpr unsigned kBits[kWindowCodes] = {32, 64, 16, 16, 8, 4, 4, 4, 8, 8, 1};
  for (std::size_t kind = 0; kind < kWindowCodes; ++kind) {
    if (static_cast<WindowCodes>(kind) == WindowCodes::f64) continue;  // no codec has it
    DecodeTiles job = decoding(WindowPacking::codes, kBits[kind]);
    job.kind = static_cast<WindowCodes>(kind);
    job.scale_format = kind < 4 ? WindowScales::none : WindowScales::f16;
    job.subsampled = job.wide = kind % 2 == 0;
    append(all, decoded(stream, job));
  }
}

Result run_decoding(const DeviceStream& stream) {
  Result all;
  for (const unsigned bits : {1, 4}) {
    DecodeTiles job = decoding(WindowPacking::eden, bits);
    job.rotation_block = 4096;
    append(all, decoded(stream, job));
  }
  for (const unsigned bits : {16, 41})
    for (const unsigned block : {0, 1024}) {
      DecodeTiles job = decoding(WindowPacking::ring, bits);
      job.rotation_block = block;
      job.wide = bits == 41;
      append(all, decoded(stream, job));
      job.subsampled = block == 0;
      append(all, decoded(stream, job));
    }
  for (const WindowScales scales : {WindowScales::f32, WindowScales::f16}) {
    DecodeTiles job = decoding(WindowPacking::topk, kIndexBits);
    job.scale_format = scales;
    append(all, decoded(stream, job));
  }
  append_codes(stream, all);
  return all;
}

// --- encoding --------------------------------------------------------------------------------

// Two tensors with a gap between them, over a tile and a short one; some values are beyond their
// limit.
Result encoded(const DeviceStream& stream, unsigned block, unsigned bits, bool aes) {
  constexpr std::uint32_t kFirst = 4000;
  constexpr std::uint32_t kSecond = 64 * 37;
  constexpr std::size_t kKeys = 3;
  const OnDeviceCopy<float> a(stream, Rows<float>::small_values(kFirst));
  const OnDeviceCopy<double> b(stream, Rows<double>::small_values(kSecond));
  const auto* const floats = reinterpret_cast<unsigned char*>(a.at());
  const auto* const doubles = reinterpret_cast<unsigned char*>(b.at());
  const OnDeviceCopy<EncodeStretch> stretch(
      stream, {{floats, 100, 5, 0, kFirst, MeanFormat::f32},
               {doubles, 90, 6, 4032, 64, MeanFormat::f64},
               {doubles + 64 * sizeof(double), 90, 6, kTile, kSecond - 64, MeanFormat::f64}});
  std::vector<std::uint32_t> firsts(2 * kTile / kTileElements, 2);
  std::fill_n(firsts.begin(), kTile / kTileElements, 0);
  const OnDeviceCopy<std::uint32_t> first_stretch(stream, firsts);
  const OnDeviceCopy<EncodeSecrets> secrets(stream, {{{{5, 6}}, 500, 32'000}});
  const OnDeviceCopy<unsigned char> keys(
      stream, random_bytes(kKeys * (aes ? sizeof(DeviceAesKey) : sizeof(DeviceChaChaKey)), 5));
  const DeviceBuffer packed(stream, 2 * kTile / 8 * bits);
  const DeviceBuffer counts(stream, 4 * sizeof(EncodeCount));
  stream.clear(counts.as<void>(), counts.bytes());
  const EncodeWindow window = {.first = 3 * kTile,
                               .count = kTile + kSecond - 64,
                               .group = 1,
                               .stretch = stretch.at(),
                               .stretches = 3,
                               .first_stretch = first_stretch.at(),
                               .secrets = secrets.at(),
                               .stochastic = true,
                               .rotation_block = block,
                               .rotation_key = {{3, 4}},
                               .bits = bits,
                               .aes = aes,
                               .keys = keys.at(),
                               .added = 2,
                               .subtracted = kKeys - 2,
                               .packed = packed.as<unsigned char>(),
                               .counts = counts.as<EncodeCount>()};
  stream.device().check(stream.device().api().encode->encode(stream.launch(), window), "encode");
  Result all = read(stream, packed);
  append(all, read(stream, counts));
  return all;
}

Result run_encoding(const DeviceStream& stream) {
  Result all;
  for (const unsigned block : {0, 1024})
    for (const unsigned bits : {22, 41})
      for (const bool aes : {false, true}) append(all, encoded(stream, block, bits, aes));
  return all;
}

// --- all of them -----------------------------------------------------------------------------

struct Family {
  const char* name;
  Result (*run)(const DeviceStream& stream);
};

constexpr Family kFamilies[] = {
    {"mean", run_mean},         {"masks", run_masks},       {"order", run_order},
    {"gram", run_gram},         {"tensors", run_tensors},   {"rotation", run_rotation},
    {"decoding", run_decoding}, {"encoding", run_encoding}, {"step", run_step},
};

struct Run {
  std::uint64_t seed;
  LaunchShape shape;
};

constexpr Run kRuns[] = {{0, {0, 0}}, {1, {3, 64}}, {2, {1, 256}}, {3, {7, 32}}};

Result run_once(const Family& family, const Run& run) {
  vs_emu::use({.seed = run.seed});
  use_launch_shape(run.shape);
  const DeviceOwner device = open_device("emu");
  const OnDevice on(*device);
  const DeviceStream stream(*device);
  return family.run(stream);
}

bool always_the_same(const Family& family) {
  const Result first = run_once(family, kRuns[0]);
  for (const Run& run : kRuns)
    if (run_once(family, run) != first) {
      std::fprintf(stderr, "error: %s depends on its shape or order: seed %d, %u x %u threads\n",
                   family.name, static_cast<int>(run.seed), run.shape.blocks, run.shape.threads);
      return false;
    }
  std::printf("ok %s: %zu bytes\n", family.name, first.size());
  return true;
}

}  // namespace
}  // namespace veilsum

int main() {
  bool good = true;
  try {
    for (const auto& family : veilsum::kFamilies) good &= veilsum::always_the_same(family);
  } catch (const veilsum::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return good ? 0 : 1;
}
