#include "update/decode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "codec/codecs.h"
#include "element/bits.h"
#include "kernels/dispatch.h"
#include "masks/ring_words.h"

namespace veilsum {
namespace {

constexpr std::size_t kPiece = 4096;
constexpr std::uint32_t kInfinity = 0x7F800000;

void check_group(const ChunkGrid& grid, std::span<const ByteSpan> chunks,
                 std::vector<ChunkView>& views) {
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    views.push_back(check_chunk(chunks[i], grid));
    if (views.back().header.index != i)
      throw DecodeError("chunk " + std::to_string(i) + " of group " + std::to_string(grid.group) +
                        " is missing or out of order: chunk " +
                        std::to_string(views.back().header.index) + " is in its place");
  }
}

void decode_ring(const ChunkView& chunk, double scale, std::size_t begin, std::span<float> out) {
  const unsigned bits = ring_bits(chunk.header.codec);
  std::array<std::uint64_t, kPiece> words;
  const auto fields = chunk.codes.subspan(begin / 8 * bits, packed_size(out.size(), bits));
  unpack_words(fields, bits, {words.data(), out.size()});
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<float>(static_cast<double>(sign_extend(words[i], bits)) / scale);
}

// Calls `use(begin, count)` for the pieces of a chunk.
template <class Use>
void for_each_piece(const ChunkView& chunk, Use&& use) {
  for (std::size_t begin = 0; begin < chunk.header.count; begin += kPiece)
    use(begin, std::min<std::size_t>(kPiece, chunk.header.count - begin));
}

void check_finite(const ChunkView& chunk, std::span<const float> values) {
  if (kernels().codec.max_abs32(values.data(), values.size()) < kInfinity) return;
  throw DecodeError("chunk " + std::to_string(chunk.header.index) + " of group " +
                    std::to_string(chunk.header.group) + " has steps beyond every f32 value");
}

void scatter_floats(const Layout& layout, const ChunkView& chunk, double scale,
                    MutableTensorData tensors) {
  std::array<float, kPiece> room;
  for_each_piece(chunk, [&](std::size_t begin, std::size_t count) {
    const std::span values(room.data(), count);
    decode_floats(chunk, scale, begin, values);
    check_finite(chunk, values);
    check_gaps(layout, values, chunk.header.first + begin);
    scatter(layout, values, chunk.header.first + begin, tensors);
  });
}

void scatter_integers(const Layout& layout, const ChunkView& chunk, MutableTensorData tensors) {
  std::array<std::int64_t, kPiece> room;
  for_each_piece(chunk, [&](std::size_t begin, std::size_t count) {
    const std::span values(room.data(), count);
    decode_integers(chunk, begin, values);
    check_gaps(layout, values, chunk.header.first + begin);
    scatter(layout, values, chunk.header.first + begin, tensors);
  });
}

}  // namespace

std::vector<ChunkView> check_update(const Layout& layout, std::span<const ByteSpan> chunks,
                                    const UpdateForm& form) {
  require_form(form);
  if (chunks.size() != count_chunks(layout, form))
    throw DecodeError("the update has " + std::to_string(chunks.size()) + " chunks, its layout " +
                      "needs " + std::to_string(count_chunks(layout, form)));
  const ChunkGrid floats = update_grid(layout, form, kFloatGroup);
  std::vector<ChunkView> views;
  views.reserve(chunks.size());
  check_group(floats, chunks.first(floats.chunks()), views);
  check_group(update_grid(layout, form, kIntegerGroup), chunks.subspan(floats.chunks()), views);
  return views;
}

void require_sizes(std::span<const ByteSpan> chunks, std::span<const std::size_t> sizes) {
  if (chunks.size() != sizes.size())
    throw DecodeError("the update has " + std::to_string(chunks.size()) + " chunks, its layout " +
                      "needs " + std::to_string(sizes.size()));
  for (std::size_t i = 0; i < sizes.size(); ++i)
    if (chunks[i].size() != sizes[i])
      throw DecodeError("chunk " + std::to_string(i) + " of the update has " +
                        std::to_string(chunks[i].size()) + " bytes, expected " +
                        std::to_string(sizes[i]));
}

void decode_floats(const ChunkView& chunk, double scale, std::size_t begin, std::span<float> out) {
  const CodecKernels& codec = kernels().codec;
  const std::byte* codes = chunk.codes.data();
  switch (chunk.header.codec) {
    case kCodecF32:
      std::memcpy(out.data(), codes + 4 * begin, out.size_bytes());
      return;
    case kCodecF16:
      return codec.widen_f16(reinterpret_cast<const WireHalf*>(codes) + begin, out.size(),
                             out.data());
    case kCodecBf16:
      return codec.widen_bf16(reinterpret_cast<const WireHalf*>(codes) + begin, out.size(),
                              out.data());
    case kCodecInt8:
      return codec.decode_int8(
          reinterpret_cast<const std::int8_t*>(codes) + begin,
          reinterpret_cast<const WireFloat*>(chunk.scales.data()) + begin / kInt8Block, out.size(),
          out.data());
    default:
      return decode_ring(chunk, scale, begin, out);
  }
}

void decode_integers(const ChunkView& chunk, std::size_t begin, std::span<std::int64_t> out) {
  std::memcpy(out.data(), chunk.codes.data() + 8 * begin, out.size_bytes());
}

void decode_update(const Layout& layout, std::span<const ChunkView> chunks, double scale,
                   MutableTensorData tensors) {
  const FloatEnvironment exact;
  for (const ChunkView& chunk : chunks) {
    if (chunk.header.group == kFloatGroup)
      scatter_floats(layout, chunk, scale, tensors);
    else
      scatter_integers(layout, chunk, tensors);
  }
}

}  // namespace veilsum
