#include "update/decode.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "kernels/dispatch.h"
#include "update/subsampled.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

constexpr std::size_t kPiece = kCodedTile;
constexpr std::uint32_t kInfinity = 0x7F800000;

void check_group(const ChunkGrid& grid, std::span<const ByteSpan> chunks, unsigned threads,
                 std::span<ChunkView> views) {
  parallel_for(chunks.size(), 1, threads, [&](const Range& range) {
    const std::size_t i = range.index;
    views[i] = check_chunk(chunks[i], grid);
    if (views[i].header.index != i)
      throw DecodeError("chunk " + std::to_string(i) + " of group " + std::to_string(grid.group) +
                        " is missing or out of order: chunk " +
                        std::to_string(views[i].header.index) + " is in its place");
  });
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

void scatter_floats(const Layout& layout, const ChunkView& chunk, const UpdateForm& form,
                    MutableTensorData tensors) {
  std::array<float, kPiece> room;
  for_each_piece(chunk, [&](std::size_t begin, std::size_t count) {
    const std::span values(room.data(), count);
    const ValueCodec& codec = value_codec(form.codec);
    codec.decode({layout, chunk, form, begin, count}, values);
    check_finite(chunk, values);
    if (!codec.fills_gaps() && !is_rotated(form))
      check_gaps(layout, values, chunk.header.first + begin);
    scatter(layout, values, chunk.header.first + begin, tensors);
  });
}

void scatter_subsampled(const Layout& layout, std::span<const ChunkView> chunks,
                        const UpdateForm& form, MutableTensorData tensors) {
  const SubsampledValues kept(layout, chunks, form);
  const std::uint64_t size = layout.group_size(kFloatGroup);
  std::array<float, kPiece> room;
  for (std::uint64_t first = 0; first < size; first += kPiece) {
    const std::span values(room.data(), std::min<std::uint64_t>(kPiece, size - first));
    kept.read(first, values);
    if (kernels().codec.max_abs32(values.data(), values.size()) >= kInfinity)
      throw DecodeError("the update has values beyond every f32 value near coordinate " +
                        std::to_string(first));
    check_gaps(layout, values, first);
    scatter(layout, values, first, tensors);
  }
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
                                    const UpdateForm& form, unsigned threads) {
  require_form(form);
  try {
    require_blocks_fit(layout, form.codec);
  } catch (const ConfigError& error) {  // here the choice was a site's
    throw DecodeError(error.what(), error.hint());
  }
  if (chunks.size() != count_chunks(layout, form))
    throw DecodeError("the update has " + std::to_string(chunks.size()) + " chunks, its layout " +
                      "needs " + std::to_string(count_chunks(layout, form)));
  const ChunkGrid floats = update_grid(layout, form, kFloatGroup);
  std::vector<ChunkView> views(chunks.size());
  const std::size_t first = floats.chunks();
  check_group(floats, chunks.first(first), threads, std::span(views).first(first));
  check_group(update_grid(layout, form, kIntegerGroup), chunks.subspan(first), threads,
              std::span(views).subspan(first));
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

void decode_integers(const ChunkView& chunk, std::size_t begin, std::span<std::int64_t> out) {
  std::memcpy(out.data(), chunk.codes.data() + 8 * begin, out.size_bytes());
}

void decode_update(const Layout& layout, std::span<const ChunkView> chunks, const UpdateForm& form,
                   MutableTensorData tensors, unsigned threads) {
  const FloatEnvironment exact;
  const bool subsampled = is_subsampled(form);
  if (subsampled) scatter_subsampled(layout, chunks, form, tensors);
  parallel_for(chunks.size(), 1, threads, [&](const Range& range) {
    const ChunkView& chunk = chunks[range.index];
    if (chunk.header.group == kIntegerGroup)
      scatter_integers(layout, chunk, tensors);
    else if (!subsampled)
      scatter_floats(layout, chunk, form, tensors);
  });
}

}  // namespace veilsum
