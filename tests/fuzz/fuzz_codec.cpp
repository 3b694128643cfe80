// Decoders: fuzz_codec --codecs=NAME,NAME ... The fuzzer's bytes choose one of these codecs, or
// a variant of one, and are the scales and codes of a whole update; header and checksum are made
// to fit.
//
// An update that is accepted must decode to the same bits on every instruction set, to the
// values of the second decoder (slow_format.h), and to its own mean when it is summed with itself.
// One that the second decoder allows must be accepted.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "aggregate/mean.h"
#include "base/float_environment.h"
#include "input.h"
#include "kernels/dispatch.h"
#include "slow_format.h"
#include "update/decode.h"
#include "update/encode.h"
#include "update/value_codec.h"

namespace veilsum::fuzz {
namespace {

std::vector<std::uint16_t> codecs;  // under test

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      Layout({{"w", DType::f32, {64}, 0}}),
      Layout({{"w", DType::f32, {130}, 0}, {"v", DType::f32, {3}, 0}}),
      Layout({{"h", DType::f16, {64}, 0}, {"b", DType::bf16, {70}, 0}, {"d", DType::f64, {1}, 0}}),
      Layout({{"n", DType::i16, {5}, 0}, {"w", DType::f32, {200}, 0}, {"u", DType::u64, {3}, 0}}),
      Layout({{"w", DType::f32, {4096 + 640}, 0}}),
  };
  return all;
}

UpdateForm make_form(Input& input) {
  UpdateForm form{};
  form.codec = codecs[input.byte() % codecs.size()];
  form.chunk_coordinates = 4096;
  form.update_id = 0x0123456789ABCDEF;  // a rotation depends on both
  for (std::size_t i = 0; i < form.plan.size(); ++i)
    form.plan[i] = static_cast<std::byte>(37 * i + 11);
  if (ring_bits(form.codec) != 0)
    form.scale = std::ldexp(1.0 + input.byte() / 256.0, input.byte() - 90);
  return form;
}

// The fuzzer's bytes again and again: a large update needs no large input.
void fill(std::span<std::byte> section, std::span<const std::byte> bytes, std::size_t& next) {
  for (std::byte& byte : section) {
    byte = bytes.empty() ? std::byte{0} : bytes[next % bytes.size()];
    ++next;
  }
}

using Chunks = std::vector<std::vector<std::byte>>;

Chunks make_chunks(const Layout& layout, const UpdateForm& form, std::span<const std::byte> bytes) {
  Chunks chunks;
  std::size_t next = 0;
  for (const int group : {kFloatGroup, kIntegerGroup}) {
    const ChunkGrid grid = update_grid(layout, form, group);
    for (std::uint64_t index = 0; index < grid.chunks(); ++index) {
      const ChunkHeader header = grid.header(index);
      const SectionSizes sizes = section_sizes(header.codec, header.count);
      std::vector<std::byte> scales(sizes.scales), codes(sizes.codes);
      fill(scales, bytes, next);
      fill(codes, bytes, next);
      chunks.emplace_back(chunk_bytes(header.codec, header.count));
      write_chunk(header, scales, codes, chunks.back().data());
    }
  }
  return chunks;
}

std::size_t decoded_size(const Tensor& tensor) {
  return tensor.elements * (tensor.dtype == DType::bf16 ? 4 : dtype_size(tensor.dtype));
}

using Tensors = std::vector<std::vector<std::byte>>;

std::vector<std::byte*> places_of(Tensors& tensors) {
  std::vector<std::byte*> places;
  for (auto& tensor : tensors) places.push_back(tensor.data());
  return places;
}

// None if the update is refused.
std::optional<Tensors> decode(const Layout& layout, std::span<const ByteSpan> chunks,
                              const UpdateForm& form) {
  try {
    const std::vector<ChunkView> views = check_update(layout, chunks, form);
    Tensors tensors;
    for (const Tensor& tensor : layout.tensors()) tensors.emplace_back(decoded_size(tensor));
    decode_update(layout, views, form, places_of(tensors));
    return tensors;
  } catch (const DecodeError&) {
    return std::nullopt;
  }
}

// --- against the second decoder -----------------------------------------------------------

slow::Octets octets(std::span<const std::byte> bytes) {
  slow::Octets out(bytes.size());
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

bool same(float found, double expected) {
  const auto rounded = static_cast<float>(expected);
  return std::memcmp(&found, &rounded, sizeof found) == 0;
}

// Of each coordinate of a chunk whether it lies between tensors.
std::vector<bool> gaps_of(const Layout& layout, const ChunkHeader& header) {
  std::vector<bool> gaps(header.count, true);
  for (const auto& span : layout.group(kFloatGroup))
    for (std::uint64_t at = span.first; at < span.first + span.elements; ++at)
      if (at >= header.first && at < header.first + header.count) gaps[at - header.first] = false;
  return gaps;
}

slow::Values page_values(const Layout& layout, const ChunkView& chunk, const UpdateForm& form) {
  const ChunkHeader& header = chunk.header;
  const slow::Octets scales = octets(chunk.scales), codes = octets(chunk.codes);
  const auto* plan = reinterpret_cast<const std::uint8_t*>(header.plan.data());
  return slow::values(form.codec, {scales, codes, header.count, form.scale, header.first, plan,
                                   header.update_id, gaps_of(layout, header)});
}

// Chunks of group 1, decoded alone.
void compare_with_page(const Layout& layout, const ChunkView& chunk, const UpdateForm& form) {
  if (chunk.header.group != kFloatGroup || !slow::sizes(form.codec, 1)) return;
  const auto expected = page_values(layout, chunk, form);
  if (!expected) fail("a chunk is accepted that the page refuses");
  if (!slow::has_values(form.codec)) return;
  std::array<float, 4096> found;
  value_codec(form.codec)
      .decode({layout, chunk, form, 0, chunk.header.count}, {found.data(), chunk.header.count});
  for (std::size_t i = 0; i < expected->size(); ++i)
    if (!same(found[i], (*expected)[i]))
      fail("value " + std::to_string(i) + " is " + std::to_string(found[i]) + ", the page says " +
           std::to_string((*expected)[i]));
}

// Whether the page surely allows a chunk: of tensors whose every value fits f32, and with zeros
// without a sign between them. What comes out of a rotation there is nobody's.
bool page_allows(const Layout& layout, const ChunkView& chunk, const UpdateForm& form) {
  const auto values = page_values(layout, chunk, form);
  if (!values) return false;
  const std::vector<bool> gaps = gaps_of(layout, chunk.header);
  for (std::size_t i = 0; i < values->size(); ++i) {
    if (!std::isfinite(static_cast<float>((*values)[i]))) return false;
    if (gaps[i] && eden_bits(form.codec) == 0 && !same(0.0F, (*values)[i])) return false;
  }
  return true;
}

bool page_allows(const Layout& layout, const Chunks& chunks, const UpdateForm& form) {
  if (!slow::sizes(form.codec, 1)) return false;
  return std::ranges::all_of(layout.tensors(),
                             [](const Tensor& tensor) { return tensor.dtype == DType::f32; }) &&
         std::ranges::all_of(chunks, [&](const std::vector<std::byte>& chunk) {
           return page_allows(layout, view_chunk(chunk), form);
         });
}

void compare_with_page(const Layout& layout, std::span<const ByteSpan> chunks,
                       const UpdateForm& form) {
  const FloatEnvironment exact;
  for (const ChunkView& chunk : check_update(layout, chunks, form))
    compare_with_page(layout, chunk, form);
}

// --- the mean -------------------------------------------------------------------------------

// None if the update is refused as a site's.
std::optional<Tensors> mean_of_two(const Layout& layout, std::span<const ByteSpan> chunks,
                                   const UpdateForm& form) {
  MeanAggregator mean(layout, {1, "", 0, 0});
  try {
    mean.add_chunks("a", 1, chunks, form, nullptr);
    mean.add_chunks("b", 2, chunks, form, nullptr);
  } catch (const DecodeError&) {
    return std::nullopt;
  } catch (const PeerError&) {
    return std::nullopt;
  }
  Tensors tensors;
  for (const Tensor& tensor : layout.tensors())
    tensors.emplace_back(tensor.elements * dtype_size(tensor.dtype));
  mean.finish(places_of(tensors));
  return tensors;
}

void require_own_mean(const Layout& layout, const Tensors& decoded, const Tensors& mean) {
  for (std::size_t t = 0; t < decoded.size(); ++t) {
    if (layout.tensors()[t].dtype != DType::f32) continue;
    std::vector<float> values(decoded[t].size() / 4), means(values.size());
    std::memcpy(values.data(), decoded[t].data(), decoded[t].size());
    std::memcpy(means.data(), mean[t].data(), mean[t].size());
    double largest = 0;
    for (const float value : values) largest = std::max(largest, std::fabs(double{value}));
    for (std::size_t i = 0; i < values.size(); ++i) {
      // A code's value is rounded when it is decoded, and a block's factor when it is summed:
      // 2^-50 of the largest, and one rounding of the mean.
      const double bound = std::ldexp(largest, -40) +
                           std::ldexp(std::fabs(double{values[i]}), -22) + std::ldexp(1.0, -148);
      if (!(std::fabs(double{means[i]} - values[i]) <= bound))
        fail("the mean of an update with itself is " + std::to_string(means[i]) + " at " +
             std::to_string(i) + ", its value " + std::to_string(values[i]));
    }
  }
}

// --- one input ---------------------------------------------------------------------------------

struct Outcome {
  std::optional<Tensors> decoded, mean;
  bool operator==(const Outcome&) const = default;
};

void run(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  // The last layout has more than one chunk, and is slow.
  const std::uint8_t choice = input.byte() % (4 * layouts().size());
  const Layout& layout =
      choice == 0 ? layouts().back() : layouts()[choice % (layouts().size() - 1)];
  const UpdateForm form = make_form(input);
  try {
    update_chunk_sizes(layout, {form, 0, std::nullopt, false, 1});
  } catch (const ConfigError&) {
    return;  // blocks that would reach from one tensor into the next
  }
  const Chunks owned = make_chunks(layout, form, input.rest());
  const std::vector<ByteSpan> chunks(owned.begin(), owned.end());

  std::optional<Outcome> first;
  for (const KernelTable* table : supported_kernels()) {
    use_isa(table->name);
    const Outcome outcome = {decode(layout, chunks, form), mean_of_two(layout, chunks, form)};
    if (first && *first != outcome) fail(std::string(table->name) + " differs from base");
    if (first) continue;
    if (!outcome.decoded && page_allows(layout, owned, form))
      fail("an update is refused that the page allows");
    if (outcome.mean && !outcome.decoded) fail("an update is summed that does not decode");
    if (outcome.decoded) compare_with_page(layout, chunks, form);
    if (outcome.decoded && outcome.mean) require_own_mean(layout, *outcome.decoded, *outcome.mean);
    first = outcome;
  }
}

}  // namespace

// A codec and its variants: "int8" stands for "int8/b32" and "int8/b128/f16", too.
void add_codecs(std::string_view name) {
  const std::size_t before = codecs.size();
  static const std::vector<std::uint16_t> all = all_codecs();
  for (const std::uint16_t number : all) {
    const std::string full = codec_name(number);
    if (std::string_view(full).substr(0, full.find('/')) == name) codecs.push_back(number);
  }
  if (codecs.size() == before) fail("there is no codec " + std::string(name));
}

void choose_codecs(int* count, char** arguments) {
  constexpr std::string_view option = "--codecs=";
  for (int i = 1; i < *count; ++i) {
    std::string_view names = arguments[i];
    if (!names.starts_with(option)) continue;
    names.remove_prefix(option.size());
    for (bool more = true; more;) {
      const std::size_t comma = names.find(',');
      add_codecs(names.substr(0, comma));
      more = comma != names.npos;
      if (more) names.remove_prefix(comma + 1);
    }
    std::copy(arguments + i + 1, arguments + *count, arguments + i);
    --*count;
    return;
  }
  fail("which codecs? --codecs=NAME,NAME");
}

}  // namespace veilsum::fuzz

extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  veilsum::fuzz::choose_codecs(count, *arguments);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  veilsum::fuzz::run(data, size);
  return 0;
}
