#include "masks/ring_chunks.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "base/secret.h"
#include "codec/codecs.h"
#include "element/bits.h"
#include "element/ring.h"
#include "kernels/dispatch.h"
#include "masks/masks.h"
#include "masks/ring_words.h"
#include "masks/step_writer.h"

namespace veilsum {
namespace {

constexpr std::size_t kGridTile = kRunTiles * kTileElements;  // what a rotation mixes at most

// --- one chunk of words --------------------------------------------------------

void pack_into(std::span<const std::uint32_t> words, unsigned bits, std::byte* codes) {
  kernels().ring.pack32(words.data(), words.size(), bits, reinterpret_cast<unsigned char*>(codes));
}

void pack_into(std::span<const std::uint64_t> words, unsigned bits, std::byte* codes) {
  kernels().ring.pack64(words.data(), words.size(), bits, reinterpret_cast<unsigned char*>(codes));
}

// Writes chunks a run of mask tiles at a time: steps, keystream and packed words of a run
// fit into the first-level cache, and no more than that is ever in memory in the clear. It
// is wiped with the writer.
template <class Word>
class ChunkWriter {
 public:
  explicit ChunkWriter(const RingChunkPlan& plan)
      : plan_(plan), words_(kRunTiles * kTileElements), keystream_(kMaskScratchBytes) {}

  // `fill(first, words)` writes the words of the coordinates from `first` on.
  template <class Fill>
  void write(const ChunkHeader& header, const Fill& fill, std::byte* chunk) {
    std::byte* const codes = chunk + codes_offset(header.codec, header.count);
    const unsigned bits = ring_bits(header.codec);
    for (std::size_t done = 0; done < header.count; done += words_.size()) {
      const auto words = words_.span().first(std::min(words_.size(), header.count - done));
      fill(header.first + done, words);
      add_masks_here(words, plan_.terms, {header.group, bits, header.first + done}, keystream_);
      pack_into(words, bits, codes + packed_size(done, bits));
    }
    write_chunk(header, {}, {codes, packed_size(header.count, bits)}, chunk);
  }

 private:
  const RingChunkPlan& plan_;
  WipedBuffer<Word> words_;
  MaskScratch keystream_;
};

template <class Word, class Fill>
void write_chunks(const RingChunkPlan& plan, std::span<std::byte* const> chunks, const Fill& fill) {
  parallel_for(plan.grid.chunks(), 1, plan.threads, [&](const Range& range) {
    ChunkWriter<Word>(plan).write(plan.grid.header(range.index), fill, chunks[range.index]);
  });
}

// Words of up to 32 bits are half the memory and twice the lanes of wider ones.
template <class Fill>
void write_chunks_of_width(const RingChunkPlan& plan, std::span<std::byte* const> chunks,
                           const Fill& fill) {
  if (ring_bits(plan.grid.codec) <= 32)
    write_chunks<std::uint32_t>(plan, chunks, fill);
  else
    write_chunks<std::uint64_t>(plan, chunks, fill);
}

// --- folding -----------------------------------------------------------------------

// Checked again where it decides which memory is touched: this check is what keeps a
// mistake of the caller from becoming an access out of bounds.
std::span<const std::byte> codes_of(std::span<const std::byte> chunk, const ChunkGrid& grid,
                                    std::size_t index) {
  const ChunkHeader expected = grid.header(index);
  const std::size_t size = chunk_bytes(expected.codec, expected.count);
  if (chunk.size() != size)
    throw DecodeError("chunk " + std::to_string(index) + " must have " + std::to_string(size) +
                      " bytes, got " + std::to_string(chunk.size()));
  const ChunkView view = view_chunk(chunk);
  if (view.header.codec != expected.codec || view.header.index != expected.index ||
      view.header.count != expected.count)
    throw DecodeError("chunk " + std::to_string(index) + " of codec " + codec_name(expected.codec) +
                      " is missing or out of order");
  return view.codes;
}

ChunkGrid ring_grid(unsigned bits, std::size_t size, std::uint64_t chunk_coordinates) {
  require_chunk_coordinates(chunk_coordinates);
  ChunkGrid grid{};
  grid.codec = static_cast<std::uint16_t>(kCodecRing | bits);
  grid.group_size = size;
  grid.chunk_coordinates = chunk_coordinates;
  return grid;
}

template <class Word>
void fold(std::span<Word> sums, Uploads uploads, unsigned bits, std::uint64_t chunk_coordinates,
          unsigned threads) {
  const std::vector<RingCodes> all =
      ring_codes(uploads, sums.size(), bits, 8 * sizeof(Word), chunk_coordinates);
  const ChunkGrid grid = ring_grid(bits, sums.size(), chunk_coordinates);
  parallel_for(grid.chunks(), 1, threads, [&](const Range& range) {
    std::vector<std::span<const std::byte>> codes;
    for (const RingCodes& upload : all) codes.push_back(upload[range.index]);
    const ChunkHeader header = grid.header(range.index);
    add_packed(codes, bits, sums.subspan(header.first, header.count));
  });
}

void require_tile_words(std::size_t tiles, const char* what, std::size_t words) {
  if (words != tiles * kTileElements)
    throw ConfigError(std::to_string(tiles) + " tiles are " +
                      std::to_string(tiles * kTileElements) + " " + what + ", got " +
                      std::to_string(words));
}

struct MaskTile {
  std::size_t first;
  std::size_t count;
};

MaskTile mask_tile(std::uint64_t number, std::size_t size) {
  if (number > size / kTileElements || number * kTileElements >= size)
    throw ConfigError("there is no tile " + std::to_string(number) + " in " + std::to_string(size) +
                      " coordinates");
  const std::size_t first = number * kTileElements;
  return {first, std::min<std::size_t>(kTileElements, size - first)};
}

template <class Word>
void fold_tiles(std::span<Word> sums, Uploads uploads, std::size_t size,
                std::span<const std::uint64_t> tiles, unsigned bits,
                std::uint64_t chunk_coordinates) {
  const std::vector<RingCodes> all =
      ring_codes(uploads, size, bits, 8 * sizeof(Word), chunk_coordinates);
  require_tile_words(tiles.size(), "sums", sums.size());
  const WeakestKernels checking;
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const auto [first, count] = mask_tile(tiles[i], size);
    std::vector<std::span<const std::byte>> codes;
    for (const RingCodes& upload : all)
      codes.push_back(upload[first / chunk_coordinates].subspan(
          packed_size(first % chunk_coordinates, bits), packed_size(count, bits)));
    add_packed(codes, bits, sums.subspan(i * kTileElements, count));
  }
}

}  // namespace

std::vector<RingCodes> ring_codes(Uploads uploads, std::size_t size, unsigned bits,
                                  unsigned word_bits, std::uint64_t chunk_coordinates) {
  require_ring_bits(bits, word_bits);
  const ChunkGrid grid = ring_grid(bits, size, chunk_coordinates);
  std::vector<RingCodes> all;
  for (const auto& chunks : uploads) {
    if (chunks.size() != grid.chunks())
      throw DecodeError(std::to_string(grid.group_size) + " coordinates are " +
                        std::to_string(grid.chunks()) + " chunks, got " +
                        std::to_string(chunks.size()));
    RingCodes& codes = all.emplace_back();
    for (std::size_t i = 0; i < chunks.size(); ++i) codes.push_back(codes_of(chunks[i], grid, i));
  }
  return all;
}

RingChunkPlan ring_chunk_plan(unsigned bits, const ChunkGrid& place, const MaskTerms& terms,
                              unsigned threads) {
  require_chunk_coordinates(place.chunk_coordinates);
  require_mask_place({place.group, bits, 0}, place.group_size, kMaxRingBits);
  ChunkGrid grid = place;
  grid.codec = static_cast<std::uint16_t>(kCodecRing | bits);
  grid.masked = terms.count != 0;
  return {grid, terms, threads};
}

std::vector<std::size_t> ring_chunk_sizes(const RingChunkPlan& plan) {
  std::vector<std::size_t> sizes(plan.grid.chunks());
  for (std::size_t i = 0; i < sizes.size(); ++i)
    sizes[i] = chunk_bytes(plan.grid.codec, plan.grid.header(i).count);
  return sizes;
}

std::uint64_t write_step_chunks(const Layout& layout, TensorData tensors, const StepPlan& steps,
                                const RingChunkPlan& plan, std::span<std::byte* const> chunks) {
  require_step_plan(layout, steps, ring_bits(plan.grid.codec));
  const FloatEnvironment exact;
  StepWriter writer(layout, tensors, steps);
  write_chunks_of_width(plan, chunks,
                        [&](std::uint64_t first, auto words) { writer.fill(first, words); });
  return writer.tally().clamped();
}

void write_step_tiles(const Layout& layout, const ReadValues& read, const StepPlan& steps,
                      const RingChunkPlan& plan, std::span<const std::uint64_t> tiles,
                      std::span<std::uint64_t> words) {
  require_step_plan(layout, steps, ring_bits(plan.grid.codec));
  require_tile_words(tiles.size(), "words", words.size());
  const WeakestKernels checking;
  const FloatEnvironment exact;
  WipedBuffer<double> values(kGridTile);
  WipedBuffer<std::uint64_t> clear(kGridTile);
  MaskScratch keystream(kMaskScratchBytes);
  std::ranges::fill(words, std::uint64_t{0});
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    const auto [first, count] = mask_tile(tiles[i], plan.grid.group_size);
    // A rotation mixes all of the tile of the grid that it lies in.
    const std::size_t begin = first / kGridTile * kGridTile;
    const std::size_t size = std::min<std::size_t>(kGridTile, plan.grid.group_size - begin);
    read(begin, values.span().first(size));
    write_value_steps(steps, begin, values.span().first(size), clear.span().first(size));
    const auto own = words.subspan(i * kTileElements, count);
    std::ranges::copy(clear.span().subspan(first - begin, count), own.begin());
    const unsigned bits = ring_bits(plan.grid.codec);
    add_masks_here(own, plan.terms, {plan.grid.group, bits, first}, keystream);
    for (std::uint64_t& word : own) word &= low_bits(bits);
  }
}

void write_word_chunks(std::span<const std::uint64_t> words, const RingChunkPlan& plan,
                       std::span<std::byte* const> chunks) {
  write_chunks_of_width(plan, chunks, [&](std::uint64_t first, auto chunk_words) {
    for (std::size_t i = 0; i < chunk_words.size(); ++i) chunk_words[i] = words[first + i];
  });
}

void fold_ring_chunks(std::span<std::uint32_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads) {
  fold(sums, uploads, bits, chunk_coordinates, threads);
}

void fold_ring_chunks(std::span<std::uint64_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads) {
  fold(sums, uploads, bits, chunk_coordinates, threads);
}

void fold_ring_tiles(std::span<std::uint32_t> sums, Uploads uploads, std::size_t size,
                     std::span<const std::uint64_t> tiles, unsigned bits,
                     std::uint64_t chunk_coordinates) {
  fold_tiles(sums, uploads, size, tiles, bits, chunk_coordinates);
}

void fold_ring_tiles(std::span<std::uint64_t> sums, Uploads uploads, std::size_t size,
                     std::span<const std::uint64_t> tiles, unsigned bits,
                     std::uint64_t chunk_coordinates) {
  fold_tiles(sums, uploads, size, tiles, bits, chunk_coordinates);
}

}  // namespace veilsum
