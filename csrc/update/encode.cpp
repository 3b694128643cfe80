#include "update/encode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "codec/codecs.h"
#include "kernels/dispatch.h"
#include "masks/ring_chunks.h"
#include "update/values.h"

namespace veilsum {
namespace {

constexpr std::uint32_t kInfinity = 0x7F800000;
constexpr std::size_t kPiece = 4096;

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

// The places of scales and codes inside a chunk that is being made.
struct Sections {
  std::span<std::byte> scales;
  std::span<std::byte> codes;
};

Sections sections_in(std::byte* chunk, const ChunkHeader& header) {
  const SectionSizes sizes = section_sizes(header.codec, header.count);
  return {{chunk + scales_offset(), sizes.scales},
          {chunk + codes_offset(header.codec, header.count), sizes.codes}};
}

// False if a value became infinite.
bool write_halves(std::span<const float> values, std::uint16_t codec, WireHalf* out) {
  const bool brain = codec == kCodecBf16;
  const CodecKernels& codec_kernels = kernels().codec;
  (brain ? codec_kernels.narrow_bf16 : codec_kernels.narrow_f16)(values.data(), values.size(), out);
  const unsigned exponent = brain ? 0x7F80 : 0x7C00;
  unsigned infinite = 0;
  for (std::size_t i = 0; i < values.size(); ++i) infinite |= (out[i] & exponent) == exponent;
  return infinite == 0;
}

class FloatChunks {
 public:
  FloatChunks(const Layout& layout, TensorData tensors, const EncodePlan& plan)
      : layout_(layout),
        tensors_(tensors),
        plan_(plan),
        rule_{plan.rounding.has_value(), plan.rounding.value_or(PhiloxKey{}), kFloatGroup} {}

  // Works through pieces that stay in the first-level cache.
  void write(const ChunkHeader& header, std::byte* chunk) const {
    const Sections out = sections_in(chunk, header);
    std::array<float, kPiece> room;
    for (std::size_t begin = 0; begin < header.count; begin += kPiece) {
      const std::span values(room.data(), std::min<std::size_t>(kPiece, header.count - begin));
      gather(layout_, tensors_, header.first + begin, narrowing(), values);
      const bool finite = kernels().codec.max_abs32(values.data(), values.size()) < kInfinity;
      if (!finite || !write_codes(values, header, begin, out))
        refuse_values(layout_, tensors_, header.codec);
    }
    write_chunk(header, out.scales, out.codes, chunk);
  }

 private:
  // Halves are rounded a second time.
  Narrowing narrowing() const {
    const bool half = plan_.form.codec == kCodecF16 || plan_.form.codec == kCodecBf16;
    return half ? Narrowing::odd : Narrowing::nearest;
  }

  // Codes of the values from `begin` on, counted from the start of the chunk.
  bool write_codes(std::span<const float> values, const ChunkHeader& header, std::size_t begin,
                   const Sections& out) const {
    switch (header.codec) {
      case kCodecF32:
        std::memcpy(out.codes.data() + 4 * begin, values.data(), values.size_bytes());
        return true;
      case kCodecInt8:
        kernels().codec.encode_int8(
            values.data(), values.size(), header.first + begin, rule_,
            reinterpret_cast<WireFloat*>(out.scales.data()) + begin / kInt8Block,
            reinterpret_cast<std::int8_t*>(out.codes.data()) + begin);
        return true;
      default:
        return write_halves(values, header.codec,
                            reinterpret_cast<WireHalf*>(out.codes.data()) + begin);
    }
  }

  const Layout& layout_;
  const TensorData tensors_;
  const EncodePlan& plan_;
  const CodeRule rule_;
};

void encode_floats(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                   const ChunkGrid& grid, std::span<std::byte* const> chunks) {
  const FloatChunks encoder(layout, tensors, plan);
  parallel_for(chunks.size(), 1, plan.threads, [&](const Range& range) {
    encoder.write(grid.header(range.index), chunks[range.index]);
  });
}

void encode_steps(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                  const ChunkGrid& grid, std::span<std::byte* const> chunks) {
  const std::vector<double> gains(layout.group(kFloatGroup).size(), plan.form.scale);
  const std::vector<double> limits(gains.size(), plan.limit);
  const RingChunkPlan ring = ring_chunk_plan(ring_bits(grid.codec), grid, {}, plan.threads);
  write_step_chunks(layout, tensors, {gains, limits, false, plan.rounding}, ring, chunks);
}

void encode_integers(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                     const ChunkGrid& grid, std::span<std::byte* const> chunks) {
  parallel_for(chunks.size(), 1, plan.threads, [&](const Range& range) {
    const ChunkHeader header = grid.header(range.index);
    std::vector<std::int64_t> values(header.count);
    gather(layout, tensors, header.first, values);
    write_chunk(header, {}, bytes_of(values), chunks[range.index]);
  });
}

void append_sizes(const ChunkGrid& grid, std::vector<std::size_t>& sizes) {
  for (std::uint64_t i = 0; i < grid.chunks(); ++i)
    sizes.push_back(chunk_bytes(grid.codec, grid.header(i).count));
}

}  // namespace

std::vector<std::size_t> update_chunk_sizes(const Layout& layout, const EncodePlan& plan) {
  require_form(plan.form);
  if (ring_bits(plan.form.codec) == 0 && plan.limit != 0)
    throw ConfigError("codec " + codec_name(plan.form.codec) + " has no limit, got " +
                      std::to_string(plan.limit));
  std::vector<std::size_t> sizes;
  append_sizes(update_grid(layout, plan.form, kFloatGroup), sizes);
  append_sizes(update_grid(layout, plan.form, kIntegerGroup), sizes);
  return sizes;
}

void encode_update(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                   std::span<std::byte* const> chunks) {
  const FloatEnvironment exact;
  const ChunkGrid floats = update_grid(layout, plan.form, kFloatGroup);
  const auto first = chunks.first(floats.chunks());
  if (ring_bits(plan.form.codec) != 0)
    encode_steps(layout, tensors, plan, floats, first);
  else
    encode_floats(layout, tensors, plan, floats, first);
  encode_integers(layout, tensors, plan, update_grid(layout, plan.form, kIntegerGroup),
                  chunks.subspan(first.size()));
}

}  // namespace veilsum
