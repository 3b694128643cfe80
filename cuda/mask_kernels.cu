// Masked sums: windows of sums, to which masks are added in registers (keystream.h), and packed
// words of many uploads.
#include "keystream.h"

namespace veilsum {
namespace {

constexpr std::size_t kMostBlocks = 4096;

// --- sums ------------------------------------------------------------------------------------

// A window counted from the start of its first tile: sums of elements outside [begin, end) are no
// part of it.
template <class Word>
struct Sums {
  Word* words;
  std::uint64_t begin;
  std::uint64_t end;
  Word kept;  // bits of the ring
};

template <class Word>
Sums<Word> sums_of(const DeviceWords& words, std::uint64_t begin, unsigned bits) {
  return {static_cast<Word*>(words.words), begin, begin + words.count,
          static_cast<Word>(low_bits(bits))};
}

template <class Word>
__device__ __forceinline__ void load_sums(const Sums<Word>& from, std::uint64_t element,
                                          Word* sums) {
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i, element += kTileThreads)
    sums[i] = element >= from.begin && element < from.end ? from.words[element - from.begin] : 0;
}

template <class Word>
__device__ __forceinline__ void store_sums(const Sums<Word>& to, std::uint64_t element,
                                           const Word* sums) {
  VS_UNROLL(8)
  for (unsigned i = 0; i < kElements; ++i, element += kTileThreads)
    if (element >= to.begin && element < to.end) to.words[element - to.begin] = sums[i] & to.kept;
}

// --- masks -----------------------------------------------------------------------------------

template <class Generator, class Word>
__global__ void __launch_bounds__(kMostThreads, Generator::kBlocks)
    mask_kernel(Sums<Word> all, MaskStream from, MaskGrid grid, const typename Generator::Key* keys,
                std::size_t added, std::size_t subtracted, std::size_t shared_bytes) {
  for (std::uint64_t piece = blockIdx.x; piece < grid.pieces; piece += gridDim.x) {
    const std::uint64_t tile = (grid.first_piece + piece) * grid.piece_tiles;
    const std::uint64_t element =
        (piece * grid.piece_tiles + threadIdx.x / kTileThreads) * kTileElements +
        threadIdx.x % kTileThreads;
    Word sums[kElements];
    load_sums(all, element, sums);
    add_masks_here<Generator>(from, grid, tile, keys, added, subtracted, sums);
    store_sums(all, element, sums);
  }
  clear_shared(shared_bytes);
}

// --- packed words ------------------------------------------------------------------------------

// kTileThreads threads share a tile here too. Neighbours read neighbouring words, and both words
// of a field come from one cache line nearly always.
template <class Word>
__global__ void __launch_bounds__(kMostThreads, 4)
    packed_kernel(Sums<Word> all, const unsigned char* strings, std::size_t count,
                  std::size_t stride, unsigned bits) {
  const unsigned groups = blockDim.x / kTileThreads;
  const FieldPlace place = field_place(threadIdx.x % kTileThreads, bits);
  std::uint64_t tile = std::uint64_t{blockIdx.x} * groups + threadIdx.x / kTileThreads;
  for (; tile * kTileElements < all.end; tile += std::uint64_t{gridDim.x} * groups) {
    const std::uint64_t element = tile * kTileElements + threadIdx.x % kTileThreads;
    const std::size_t offset = (tile * bits * kBlockWords + place.word) * 4;
    Word sums[kElements];
    load_sums(all, element, sums);
    VS_UNROLL(2)
    for (std::size_t k = 0; k < count; ++k)
      add_fields(reinterpret_cast<const std::uint32_t*>(strings + k * stride + offset),
                 bits * (kTileThreads / 32), place.shift, sums);
    store_sums(all, element, sums);
  }
}

// --- launchers -------------------------------------------------------------------------------

template <class Generator, class Word>
int launch_masks(const Launch& launch, const MaskWindow& window) {
  const unsigned threads = mask_threads(launch);
  MaskGrid grid{};
  grid.piece_tiles = threads / kTileThreads;
  const std::uint64_t piece_elements = grid.piece_tiles * kTileElements;
  grid.first_piece = window.first / piece_elements;
  const std::uint64_t begin = window.first % piece_elements;
  grid.pieces = (begin + window.sums.count + piece_elements - 1) / piece_elements;
  grid.batch = choose_batch(window.added > window.subtracted ? window.added : window.subtracted,
                            grid.piece_tiles, window.bits);
  const std::size_t shared = keystream_bytes(grid.piece_tiles, window.bits, grid.batch);
  return launch_kernel("mask_kernel", launch, choose_blocks(launch, grid.pieces, kMostBlocks),
                       threads, shared, mask_kernel<Generator, Word>,
                       sums_of<Word>(window.sums, begin, window.bits),
                       MaskStream{window.stream, window.bits}, grid,
                       static_cast<const typename Generator::Key*>(window.keys), window.added,
                       window.subtracted, shared);
}

int add_masks(const Launch& launch, const MaskWindow& window) {
  if (window.aes)
    return window.sums.wide ? launch_masks<Aes, std::uint64_t>(launch, window)
                            : launch_masks<Aes, std::uint32_t>(launch, window);
  return window.sums.wide ? launch_masks<ChaCha, std::uint64_t>(launch, window)
                          : launch_masks<ChaCha, std::uint32_t>(launch, window);
}

template <class Word>
int launch_packed(const Launch& launch, const PackedWindow& window) {
  const unsigned threads = mask_threads(launch);
  const std::size_t tiles = (window.sums.count + kTileElements - 1) / kTileElements;
  const std::size_t groups = threads / kTileThreads;
  return launch_kernel("packed_kernel", launch,
                       choose_blocks(launch, (tiles + groups - 1) / groups, kMostBlocks), threads,
                       0, packed_kernel<Word>, sums_of<Word>(window.sums, 0, window.bits),
                       window.strings, window.count, window.stride, window.bits);
}

int add_packed(const Launch& launch, const PackedWindow& window) {
  return window.sums.wide ? launch_packed<std::uint64_t>(launch, window)
                          : launch_packed<std::uint32_t>(launch, window);
}

}  // namespace

extern const MaskLaunchers VS_DEVICE_TABLE(masks);
const MaskLaunchers VS_DEVICE_TABLE(masks) = {add_masks, add_packed};

}  // namespace veilsum
