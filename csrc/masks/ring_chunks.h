// Chunks of ring words: from a site's values or ready words to masked chunks, and from
// checked chunks into the coordinator's sum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "codec/chunk.h"
#include "codec/gather.h"
#include "codec/layout.h"
#include "codec/rotation.h"
#include "codec/step_scales.h"
#include "element/philox.h"
#include "kernels/ring_kernels.h"

namespace veilsum {

// The chunks of one call. Masks are those of stream grid.group.
struct RingChunkPlan {
  ChunkGrid grid;  // codec kCodecRing | bits
  MaskTerms terms;
  unsigned threads;
};

// A plan whose chunks are flagged masked if there are mask terms. Throws ConfigError unless
// bits is 1 .. 64, chunk_coordinates is allowed and the coordinates exist in a mask stream.
RingChunkPlan ring_chunk_plan(unsigned bits, const ChunkGrid& place, const MaskTerms& terms,
                              unsigned threads);

// How values become steps: step = round(clamp(value, +-limit) * gain).
//
// With a rotation the scaled values, rounded to float, are rotated before they are rounded:
// step = round(clamp(rotate(value * gain), +-rotated_limit)). What reaches the rotation is
// clamped to sqrt(block) times that: a value beyond it puts a rotated one beyond the limit.
struct StepPlan {
  std::span<const double> gains;      // steps per unit, one per entry of the grid
  std::span<const double> limits;     // largest |value|, one per entry; without a rotation only
  bool clip;                          // false refuses a value beyond its limit
  std::optional<PhiloxKey> rounding;  // none rounds to nearest
  const ScaleGrid& grid;
  Rotation rotation{};
  double rotated_limit = 0;  // largest |rotated value| in steps
};

// Bytes of each chunk, in order: what the `chunks` below must have room for.
std::vector<std::size_t> ring_chunk_sizes(const RingChunkPlan& plan);

// Encodes, masks and packs group 1 of a model. Returns how many values were
// clamped.
//
// Throws ConfigError if a value is not finite, one exceeds its limit and clip is false, or
// gains and limits do not fit the layout or the ring; `chunks` are then unusable.
std::uint64_t write_step_chunks(const Layout& layout, TensorData tensors, const StepPlan& steps,
                                const RingChunkPlan& plan, std::span<std::byte* const> chunks);

// Values of coordinates [first, first + out.size()) of group 1; gaps are zero.
using ReadValues = std::function<void(std::uint64_t first, std::span<double> out)>;

// The words that are packed in a few mask tiles of such chunks, for those who check them, made with
// the weakest kernels:
// words[512 * i] is the first of tile number tiles[i], whose last may be short. Values were found
// finite before. Throws ConfigError if gains and limits do not fit the layout or the ring, there is
// no such tile or words.size() is not 512 * tiles.size().
void write_step_tiles(const Layout& layout, const ReadValues& read, const StepPlan& steps,
                      const RingChunkPlan& plan, std::span<const std::uint64_t> tiles,
                      std::span<std::uint64_t> words);

// Masks and packs ready words, plan.grid.group_size of them.
void write_word_chunks(std::span<const std::uint64_t> words, const RingChunkPlan& plan,
                       std::span<std::byte* const> chunks);

// One group's complete chunks, which check_chunk has passed before, of several uploads.
using Uploads = std::span<const std::vector<std::span<const std::byte>>>;

// The codes of one upload, chunk by chunk.
using RingCodes = std::vector<std::span<const std::byte>>;

// The codes of every upload. Throws DecodeError if chunks are not those of `size` coordinates,
// ConfigError unless bits is 1 .. word_bits and chunk_coordinates is allowed.
std::vector<RingCodes> ring_codes(Uploads uploads, std::size_t size, unsigned bits,
                                  unsigned word_bits, std::uint64_t chunk_coordinates);

// sums[i] += word i of every upload. Throws DecodeError, before anything is added, if chunks
// are not those of sums.size() coordinates.
void fold_ring_chunks(std::span<std::uint32_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads);
void fold_ring_chunks(std::span<std::uint64_t> sums, Uploads uploads, unsigned bits,
                      std::uint64_t chunk_coordinates, unsigned threads);

// The same of a few mask tiles only, with the weakest kernels, out of `size` coordinates: sums[512
// * i] takes the first word of tile number tiles[i], whose last may be short. Throws as
// fold_ring_chunks(), and ConfigError if there is no such tile or sums.size() is not 512 *
// tiles.size().
void fold_ring_tiles(std::span<std::uint32_t> sums, Uploads uploads, std::size_t size,
                     std::span<const std::uint64_t> tiles, unsigned bits,
                     std::uint64_t chunk_coordinates);
void fold_ring_tiles(std::span<std::uint64_t> sums, Uploads uploads, std::size_t size,
                     std::span<const std::uint64_t> tiles, unsigned bits,
                     std::uint64_t chunk_coordinates);

}  // namespace veilsum
