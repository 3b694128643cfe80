// Masks in the registers of a block of threads. It makes the keystream of some tiles in shared
// memory, a few keys at a time, and every thread adds its eight elements of one tile to sums that
// stay in registers over all keys: keystream never reaches the device's own memory.
//
// A tile of b-bit elements is b blocks of keystream (element/ring.h), so threads make whole blocks
// whatever the width, and nothing is made twice.
#pragma once

#include "device.h"
#include "device/mask_launchers.h"
#include "element/aes.h"
#include "element/bits.h"
#include "element/chacha20.h"
#include "element/ring.h"

namespace veilsum {
namespace {

constexpr unsigned kMostThreads = 256;

// Threads that share a tile, a warp or two, and the elements that each has of it.
constexpr unsigned kTileThreads = 64;
constexpr unsigned kElements = kTileElements / kTileThreads;

constexpr unsigned kBlockWords = kBlockBytes / 4;

// --- fields --------------------------------------------------------------------------------

// Field `index` of a bit string begins at bit `shift` of word `word`. Those of one thread are
// kTileThreads apart, which is a whole number of words for every width: they share the shift.
struct FieldPlace {
  std::size_t word;
  unsigned shift;
};

__device__ __forceinline__ FieldPlace field_place(std::size_t index, unsigned bits) {
  const std::size_t bit = index * bits;
  return {bit / 32, static_cast<unsigned>(bit % 32)};
}

// 32 bits from bit `shift` of `low` on; a device does it in one operation.
VS_FN std::uint32_t straddle(std::uint32_t low, std::uint32_t high, unsigned shift) {
  return static_cast<std::uint32_t>(((std::uint64_t{high} << 32) | low) >> shift);
}

// As many bits as a sum has, of which the low ones are the field: what follows it in the string
// only reaches bits above the ring.
__device__ __forceinline__ std::uint32_t read_field(const std::uint32_t* words, unsigned shift,
                                                    std::uint32_t) {
  return straddle(words[0], words[1], shift);
}

__device__ __forceinline__ std::uint64_t read_field(const std::uint32_t* words, unsigned shift,
                                                    std::uint64_t) {
  const std::uint32_t middle = words[1];
  return straddle(words[0], middle, shift) | std::uint64_t{straddle(middle, words[2], shift)} << 32;
}

// Adds the fields that start `step` words apart.
template <class Word>
__device__ __forceinline__ void add_fields(const std::uint32_t* words, unsigned step,
                                           unsigned shift, Word* sums) {
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i)
    sums[i] += read_field(words + std::size_t{i} * step, shift, Word{});
}

template <class Word>
__device__ __forceinline__ void negate(Word* sums) {
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i) sums[i] = 0 - sums[i];
}

// --- generators ----------------------------------------------------------------------------
//
// Each makes one block of 64 bytes. kBlocks blocks of threads fit a processor at once, which bounds
// the registers of a thread.

struct ChaCha {
  using Key = DeviceChaChaKey;
  static constexpr unsigned kBlocks = 4;
  __device__ static void make(const Key* place, const ChaChaNonce& nonce, std::uint32_t counter,
                              std::uint32_t* words) {
    Key key;
    VS_UNROLL(2)
    for (int i = 0; i < 2; ++i) {
      const uint4 four = load_aligned<uint4>(place->word + 4 * i);
      key.word[4 * i] = four.x;
      key.word[4 * i + 1] = four.y;
      key.word[4 * i + 2] = four.z;
      key.word[4 * i + 3] = four.w;
    }
    chacha20_block<PlainRotate>(key, nonce, counter, words);
  }
};

struct Aes {
  using Key = DeviceAesKey;
  static constexpr unsigned kBlocks = 2;
  __device__ static void make(const Key* key, const ChaChaNonce& nonce, std::uint32_t counter,
                              std::uint32_t* words) {
    std::uint64_t half[8];
    aes_keystream(*key, nonce.word, std::uint64_t{counter}, half);
    VS_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      words[2 * i] = static_cast<std::uint32_t>(half[i]);
      words[2 * i + 1] = static_cast<std::uint32_t>(half[i] >> 32);
    }
  }
};

// --- masks -----------------------------------------------------------------------------------

// Pieces of a window: as many whole tiles as a block of threads has groups of kTileThreads. They
// begin at multiples of that, a power of two, so none is in two segments of a stream.
struct MaskGrid {
  std::uint64_t first_piece;
  std::uint64_t pieces;
  unsigned piece_tiles;
  unsigned batch;  // keys whose keystream is made at a time, a power of two
};

struct MaskStream {
  std::uint32_t stream;
  unsigned bits;
};

// The keystream of `keys` keys for the tiles from `tile` on: threads take blocks in turn, those of
// neighbours belong to the keys of a batch.
template <class Generator>
__device__ void make_keystream(const MaskStream& from, const MaskGrid& grid, std::uint64_t tile,
                               const typename Generator::Key* key, std::size_t keys,
                               unsigned char* out) {
  const ChaChaNonce nonce = mask_nonce(from.stream, tile);
  const std::uint32_t counter = mask_counter(tile, from.bits);
  const unsigned key_blocks = grid.piece_tiles * from.bits;
  const unsigned batch_shift = static_cast<unsigned>(__ffs(static_cast<int>(grid.batch)) - 1);
  VS_UNROLL(1)
  for (unsigned job = threadIdx.x; job < key_blocks * grid.batch; job += blockDim.x) {
    const unsigned k = job & (grid.batch - 1);
    const unsigned block = job >> batch_shift;
    if (k >= keys) continue;
    std::uint32_t words[kBlockWords];
    Generator::make(key + k, nonce, counter + block, words);
    unsigned char* const place = out + std::size_t{k * key_blocks + block} * kBlockBytes;
    VS_UNROLL(4)
    for (unsigned i = 0; i < kBlockWords; i += 4)
      store_aligned(place + 4 * i, uint4{words[i], words[i + 1], words[i + 2], words[i + 3]});
  }
}

// Adds the masks of `keys` keys to the sums of a thread, which are of the elements from
// `lane` on in tile number `group` of the piece.
template <class Generator, class Word>
__device__ void add_keys(const MaskStream& from, const MaskGrid& grid, std::uint64_t tile,
                         const typename Generator::Key* key, std::size_t keys, Word* sums) {
  unsigned char* const keystream = shared_memory<unsigned char>();
  const unsigned tile_words = from.bits * kBlockWords;
  const FieldPlace place = field_place(threadIdx.x % kTileThreads, from.bits);
  const std::uint32_t* const own = reinterpret_cast<const std::uint32_t*>(keystream) +
                                   threadIdx.x / kTileThreads * tile_words + place.word;
  VS_UNROLL(1)
  for (std::size_t done = 0; done < keys; done += grid.batch) {
    const std::size_t now = keys - done < grid.batch ? keys - done : grid.batch;
    make_keystream<Generator>(from, grid, tile, key + done, now, keystream);
    __syncthreads();
    VS_UNROLL(1)
    for (unsigned k = 0; k < now; ++k)
      add_fields(own + std::size_t{k} * grid.piece_tiles * tile_words,
                 from.bits * (kTileThreads / 32), place.shift, sums);
    __syncthreads();
  }
}

// Adds the masks of `added` keys and subtracts those of `subtracted` keys behind them. Subtracting
// is adding to the negative: no element pays for its sign.
template <class Generator, class Word>
__device__ __forceinline__ void add_masks_here(const MaskStream& from, const MaskGrid& grid,
                                               std::uint64_t tile,
                                               const typename Generator::Key* keys,
                                               std::size_t added, std::size_t subtracted,
                                               Word* sums) {
  add_keys<Generator>(from, grid, tile, keys, added, sums);
  negate(sums);
  add_keys<Generator>(from, grid, tile, keys + added, subtracted, sums);
  negate(sums);
}

// What the next block on this processor finds in shared memory is not ours.
__device__ void clear_shared(std::size_t bytes) {
  auto* const vectors = shared_memory<uint4>();
  for (std::size_t i = threadIdx.x; i < bytes / sizeof(uint4); i += blockDim.x)
    vectors[i] = uint4{0, 0, 0, 0};
}

// --- shapes ----------------------------------------------------------------------------------

// Whole groups, and a power of two of them.
unsigned mask_threads(const Launch& launch) {
  unsigned threads = kMostThreads;
  while (threads > kTileThreads && threads > choose_threads(launch, kMostThreads)) threads /= 2;
  return threads;
}

std::size_t keystream_bytes(unsigned piece_tiles, unsigned bits, unsigned batch) {
  // A field of the last element is read through two words behind it.
  return std::size_t{batch} * piece_tiles * bits * kBlockBytes + 16;
}

// Shared memory for a batch: with more, fewer blocks are at work at once.
constexpr std::size_t kBatchBytes = 24 * 1024;
constexpr unsigned kMostBatch = 8;

// Keys at a time: so many that the last warps that make their blocks are full, if memory allows.
unsigned choose_batch(std::size_t keys, unsigned piece_tiles, unsigned bits) {
  unsigned batch = 1;
  while (batch < kMostBatch && batch < keys && batch * piece_tiles * bits % 32 != 0 &&
         keystream_bytes(piece_tiles, bits, 2 * batch) <= kBatchBytes)
    batch *= 2;
  return batch;
}

}  // namespace
}  // namespace veilsum
