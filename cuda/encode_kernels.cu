// A site's masked upload. Values are read once and packed words written once: what lies between,
// scaled values, rotated values, steps, keystream and masked words, is in registers and in shared
// memory, and a value in the clear is nowhere else.
//
// Threads share tiles of 512 words as those do that add masks (keystream.h): a block works on a
// piece of up to four tiles. With a rotation it first has the tile of 4096 values that they belong
// to in shared memory.
#include <type_traits>

#include "device/encode_launchers.h"
#include "element/quantize.h"
#include "hadamard.h"
#include "keystream.h"
#include "values.h"

namespace veilsum {
namespace {

constexpr std::size_t kMostBlocks = 4096;
constexpr unsigned kMaskTiles = kRotationTile / kTileElements;  // of a tile of values

// --- values ----------------------------------------------------------------------------------

// Where coordinate `at` of the window lies; null for a gap, and behind the end.
__device__ __forceinline__ const EncodeStretch* find_stretch(const EncodeWindow& job,
                                                             std::uint32_t at) {
  if (at >= job.count) return nullptr;
  std::uint32_t number = job.first_stretch[at / kTileElements];
  while (number < job.stretches && job.stretch[number].first + job.stretch[number].count <= at)
    ++number;
  if (number == job.stretches || job.stretch[number].first > at) return nullptr;
  return job.stretch + number;
}

// Few values are ever counted, and in any order.
__device__ __forceinline__ void count_if(bool met, std::uint32_t* count) {
  if (met) atomicAdd(count, 1u);
}

// A value in steps, of which the step is to be rounded; 0 where there is none.
__device__ __forceinline__ double straight_steps(const EncodeWindow& job, std::uint32_t at) {
  const EncodeStretch* const own = find_stretch(job, at);
  if (own == nullptr) return 0;
  const double value = load_wide(own->values, own->format, at - own->first);
  EncodeCount& counts = job.counts[own - job.stretch];
  count_if(!is_finite_value(value), &counts.not_finite);
  count_if(is_beyond(value, own->limit), &counts.beyond);
  return clamped_steps(value, own->limit, own->gain);
}

// --- rotated values --------------------------------------------------------------------------

// What is rotated, 0 in a gap. What is not finite is counted, and spoils the tile: it is refused.
__device__ __forceinline__ float bounded_value(const EncodeWindow& job, std::uint32_t at) {
  const EncodeStretch* const own = find_stretch(job, at);
  if (own == nullptr) return 0;
  const std::uint32_t element = at - own->first;
  const float value = own->format == MeanFormat::f64
                          ? static_cast<float>(load_wide(own->values, own->format, element))
                          : load_narrow(own->values, own->format, element);
  const bool finite = __builtin_fabsf(value) <= 0x1.fffffep127f;  // false for NaN too
  count_if(!finite, &job.counts[own - job.stretch].not_finite);
  const double scaled = static_cast<double>(value) * own->gain;
  count_if(is_beyond(scaled, job.secrets->rotation_bound), &job.counts[job.stretches].beyond);
  return bounded_float(scaled, job.secrets->rotation_bound);
}

// Rotates the tile that begins at `begin`. `signs` has room for kSignWords; both are shared.
__device__ void rotate_tile(const EncodeWindow& job, std::uint32_t begin, float* tile,
                            std::uint32_t* signs) {
  const std::uint32_t left = job.count - begin;
  const RotationShape shape = {job.rotation_block,
                               left < kRotationTile ? left : unsigned{kRotationTile}};
  write_sign_words(job.first + begin, job.group, job.rotation_key, signs);
  __syncthreads();
  for (unsigned at = threadIdx.x; at < kRotationTile; at += blockDim.x)
    tile[tile_place(at)] = flipped(bounded_value(job, begin + at), signs, at);
  __syncthreads();
  // In place: a thread writes a slice to the places that it came from.
  transform_tile(
      shape, tile, [&](unsigned slice, float* x) { read_slice<0>(tile, slice, x); },
      [&](unsigned slice, const float* x) { write_slice<2>(tile, slice, x); });
}

__device__ __forceinline__ double rotated_steps(const EncodeWindow& job, const float* tile,
                                                std::uint32_t at) {
  const double value = tile[tile_place(at % kRotationTile)];
  count_if(is_beyond(value, job.secrets->rotated_limit), &job.counts[job.stretches].beyond);
  return clamped_steps(value, job.secrets->rotated_limit, 1);
}

// --- steps -----------------------------------------------------------------------------------

// Rounding words of `count` coordinates from `begin` on: four are one block of Philox.
__device__ void make_uniforms(const EncodeWindow& job, std::uint32_t begin, unsigned count,
                              std::uint32_t* uniforms) {
  const PhiloxKey key = job.secrets->rounding;
  const std::uint64_t first_quad = (job.first + begin) / 4;
  for (unsigned quad = threadIdx.x; quad < count / 4; quad += blockDim.x) {
    const PhiloxBlock four = rounding_words(key, first_quad + quad, job.group);
    store_aligned(uniforms + 4 * quad,
                  uint4{four.word[0], four.word[1], four.word[2], four.word[3]});
  }
  __syncthreads();
}

template <class Word>
__device__ __forceinline__ Word step_word(const EncodeWindow& job, double steps,
                                          const std::uint32_t* uniform) {
  using Step = std::make_signed_t<Word>;
  return static_cast<Word>(job.stochastic ? round_stochastic<Step>(steps, uniform24(*uniform))
                                          : round_nearest<Step>(steps));
}

// A thread's steps of the piece that begins at `begin`; `scratch` is free again afterwards.
template <class Word, bool kRotated>
__device__ __forceinline__ void make_steps(const EncodeWindow& job, std::uint32_t begin,
                                           const float* tile, std::uint32_t* scratch, Word* words) {
  const unsigned own = threadIdx.x / kTileThreads * kTileElements + threadIdx.x % kTileThreads;
  if (job.stochastic) make_uniforms(job, begin, blockDim.x * kElements, scratch);
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i) {
    const unsigned at = own + i * kTileThreads;
    const double steps =
        kRotated ? rotated_steps(job, tile, begin + at) : straight_steps(job, begin + at);
    words[i] = step_word<Word>(job, steps, scratch + at);
  }
  __syncthreads();
}

// --- packing ---------------------------------------------------------------------------------

// Bits 32 * index .. 32 * index + 31 of a tile's words, which are clean above `bits`.
template <class Word>
__device__ __forceinline__ std::uint32_t packed_word(const Word* words, unsigned index,
                                                     unsigned bits) {
  unsigned element = 32 * index / bits;
  int shift = static_cast<int>(element * bits) - static_cast<int>(32 * index);
  std::uint32_t packed = 0;
  for (; shift < 32; ++element, shift += static_cast<int>(bits)) {
    const Word word = words[element];
    packed |= shift < 0 ? static_cast<std::uint32_t>(word >> -shift)
                        : static_cast<std::uint32_t>(word) << shift;
  }
  return packed;
}

// Packs what the threads hold of the piece that begins at `begin`, by way of shared memory.
template <class Word>
__device__ void pack_piece(const EncodeWindow& job, std::uint32_t begin, const Word* words,
                           Word* shared) {
  const unsigned tile = threadIdx.x / kTileThreads;
  const unsigned lane = threadIdx.x % kTileThreads;
  const auto kept = static_cast<Word>(low_bits(job.bits));
  Word* const own = shared + tile * kTileElements;
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i) {
    const unsigned at = lane + i * kTileThreads;
    own[at] = words[i] & kept;
  }
  __syncthreads();
  const std::size_t number = begin / kTileElements + tile;
  unsigned char* const packed = job.packed + number * job.bits * kBlockBytes;
  for (unsigned index = lane; index < job.bits * kBlockWords; index += kTileThreads)
    store_aligned(packed + 4 * index, packed_word(own, index, job.bits));
  __syncthreads();
}

// --- the kernel ------------------------------------------------------------------------------

// How a block of threads works: through `pieces` of each unit, a tile if it is rotated.
struct EncodeShape {
  MaskGrid grid;
  unsigned units;
  unsigned pieces;
  std::size_t scratch_bytes;  // of shared memory: signs, uniforms, keystream, words by turns
  std::size_t shared_bytes;   // with the rotated tile behind them
};

template <class Generator, class Word, bool kRotated>
__global__ void __launch_bounds__(kMostThreads, Generator::kBlocks)
    encode_kernel(EncodeWindow job, EncodeShape shape) {
  auto* const scratch = shared_memory<std::uint32_t>();
  auto* const tile = reinterpret_cast<float*>(shared_memory<char>() + shape.scratch_bytes);
  const unsigned piece_elements = shape.grid.piece_tiles * kTileElements;
  for (unsigned unit = blockIdx.x; unit < shape.units; unit += gridDim.x) {
    std::uint32_t begin = unit * shape.pieces * piece_elements;
    if constexpr (kRotated) rotate_tile(job, begin, tile, scratch);
    VS_UNROLL(1)
    for (unsigned piece = 0; piece < shape.pieces; ++piece, begin += piece_elements) {
      Word words[kElements];
      make_steps<Word, kRotated>(job, begin, tile, scratch, words);
      add_masks_here<Generator>(
          {job.group, job.bits}, shape.grid, (job.first + begin) / kTileElements,
          static_cast<const typename Generator::Key*>(job.keys), job.added, job.subtracted, words);
      pack_piece(job, begin, words, reinterpret_cast<Word*>(scratch));
    }
  }
  clear_shared(shape.shared_bytes);
}

// --- launchers -------------------------------------------------------------------------------

template <class Word>
EncodeShape shape_of(const EncodeWindow& job, unsigned threads) {
  EncodeShape shape{};
  shape.grid.piece_tiles = threads / kTileThreads;
  shape.grid.batch = choose_batch(job.added > job.subtracted ? job.added : job.subtracted,
                                  shape.grid.piece_tiles, job.bits);
  const bool rotated = job.rotation_block != 0;
  const unsigned tiles = (job.count + kRotationTile - 1) / kRotationTile * kMaskTiles;
  shape.pieces = rotated ? kMaskTiles / shape.grid.piece_tiles : 1;
  shape.units = tiles / shape.grid.piece_tiles / shape.pieces;
  // Of a piece's words, which are at least as large as uniforms; a tile of signs is smaller.
  const std::size_t words = std::size_t{threads} * kElements * sizeof(Word);
  const std::size_t keystream = keystream_bytes(shape.grid.piece_tiles, job.bits, shape.grid.batch);
  shape.scratch_bytes = words > keystream ? words : keystream;
  shape.shared_bytes = shape.scratch_bytes + (rotated ? kRotationTile * sizeof(float) : 0);
  return shape;
}

template <class Generator, class Word>
int launch_encode(const Launch& launch, const EncodeWindow& job) {
  const unsigned threads = mask_threads(launch);
  const EncodeShape shape = shape_of<Word>(job, threads);
  const unsigned blocks = choose_blocks(launch, shape.units, kMostBlocks);
  return launch_kernel("encode_kernel", launch, blocks, threads, shape.shared_bytes,
                       job.rotation_block != 0 ? encode_kernel<Generator, Word, true>
                                               : encode_kernel<Generator, Word, false>,
                       job, shape);
}

int encode(const Launch& launch, const EncodeWindow& job) {
  if (job.aes)
    return job.bits > 32 ? launch_encode<Aes, std::uint64_t>(launch, job)
                         : launch_encode<Aes, std::uint32_t>(launch, job);
  return job.bits > 32 ? launch_encode<ChaCha, std::uint64_t>(launch, job)
                       : launch_encode<ChaCha, std::uint32_t>(launch, job);
}

}  // namespace

extern const EncodeLaunchers VS_DEVICE_TABLE(encode);
const EncodeLaunchers VS_DEVICE_TABLE(encode) = {encode};

}  // namespace veilsum
