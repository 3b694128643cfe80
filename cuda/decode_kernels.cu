// Packed tiles to values: a block of threads per tile. A thread reads the codes of 16 consecutive
// coordinates, which are 2 bytes per bit of a code.
#include "device/decode_launchers.h"

#include "element/bits.h"
#include "element/eden.h"
#include "element/quantize.h"
#include "hadamard.h"

namespace veilsum {
namespace {

constexpr unsigned kThreads = kSlices;
constexpr std::size_t kMostBlocks = 4096;

__device__ __forceinline__ RotationShape shape_of(const DecodeTiles& job, const PackedTile& tile) {
  return {job.rotation_block, tile.count};
}

// --- eden --------------------------------------------------------------------------------

// By value: a kernel cannot read constants of the host.
struct EdenCentroids {
  double positive[kEdenMostCodes / 2];
};

// What the threads of a block share beside the tile.
struct EdenShared {
  double positive[kEdenMostCodes / 2];  // centroids
  std::uint32_t signs[kSignWords];
  float values[kMostEdenBlocks][kEdenMostCodes];  // of every code in every rotation block
};

// Zeros of a block without a scale may come out negative: no sum shows it.
__device__ void prepare_eden(const DecodeTiles& job, const PackedTile& coded, EdenShared& shared) {
  const auto* const scales = reinterpret_cast<const float*>(coded.scales);
  write_sign_words(coded.first, job.group, coded.key, shared.signs);
  for (unsigned i = threadIdx.x; i < kMostEdenBlocks << job.bits; i += blockDim.x) {
    const unsigned code = i & ((1u << job.bits) - 1);
    shared.values[i >> job.bits][code] =
        eden_value(eden_centroid_of(shared.positive, job.bits, code), scales[i >> job.bits]);
  }
}

__device__ __forceinline__ void load_eden_slice(const DecodeTiles& job, const PackedTile& coded,
                                                const EdenShared& shared, unsigned slice,
                                                float* x) {
  const unsigned begin = slice * kSliceValues;
  const bool inside = begin < coded.count;
  std::uint64_t codes = 0;
  VS_UNROLL(4)
  for (unsigned i = 0; i < kEdenMostBits; ++i)
    if (i < job.bits)
      codes |= std::uint64_t{load_aligned<std::uint16_t>(coded.codes + 2 * (slice * job.bits + i))}
               << 16 * i;
  const float* const values =
      shared.values[inside ? rotation_block_number(job.rotation_block, coded.count, begin) : 0];
  VS_UNROLL(16)
  for (unsigned i = 0; i < kSliceValues; ++i)
    x[i] = inside ? values[codes >> i * job.bits & ((1u << job.bits) - 1)] : 0;
}

__global__ void __launch_bounds__(kThreads) eden_kernel(DecodeTiles job, EdenCentroids centroids) {
  auto* const tile = shared_memory<float>();
  auto& shared = *reinterpret_cast<EdenShared*>(tile + kRotationTile);
  // Without an index that varies, for which the parameter would be copied to local memory.
  VS_UNROLL(8)
  for (unsigned i = 0; i < kEdenMostCodes / 2; ++i)
    if (threadIdx.x == i) shared.positive[i] = centroids.positive[i];
  __syncthreads();
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = job.tile[number];
    prepare_eden(job, coded, shared);
    __syncthreads();
    transform_tile(
        shape_of(job, coded), tile,
        [&](unsigned slice, float* x) { load_eden_slice(job, coded, shared, slice, x); },
        [&](unsigned slice, const float* x) {
          VS_UNROLL(16)
          for (unsigned i = 0; i < kSliceValues; ++i) {
            const unsigned at = slice + i * kSlices;
            coded.values[at] = at % 64 < coded.ends[at / 64] ? flipped(x[i], shared.signs, at) : 0;
          }
        });
  }
}

// --- ring --------------------------------------------------------------------------------

__device__ __forceinline__ double ring_step(const PackedTile& coded, unsigned bits, unsigned at) {
  const auto* const words = reinterpret_cast<const std::uint32_t*>(coded.codes);
  return static_cast<double>(sign_extend(read_word_field(words, at, bits), bits));
}

__device__ __forceinline__ float ring_value(const PackedTile& coded, double step, unsigned at,
                                            unsigned scale_shift) {
  if (at % 64 >= coded.ends[at / 64]) return 0;
  return unscale_step(step, reinterpret_cast<const double*>(coded.scales)[at >> scale_shift]);
}

__global__ void __launch_bounds__(kThreads) ring_kernel(DecodeTiles job, unsigned scale_shift) {
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = job.tile[number];
    for (unsigned at = threadIdx.x; at < kRotationTile; at += blockDim.x)
      coded.values[at] = ring_value(coded, ring_step(coded, job.bits, at), at, scale_shift);
  }
}

__global__ void __launch_bounds__(kThreads)
    rotated_ring_kernel(DecodeTiles job, unsigned scale_shift) {
  auto* const tile = shared_memory<double>();
  auto* const signs = reinterpret_cast<std::uint32_t*>(tile + kRotationTile);
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = job.tile[number];
    write_sign_words(coded.first, job.group, coded.key, signs);
    __syncthreads();
    transform_tile(
        shape_of(job, coded), tile,
        [&](unsigned slice, double* x) {
          VS_UNROLL(16)
          for (unsigned i = 0; i < kSliceValues; ++i)
            x[i] = ring_step(coded, job.bits, slice * kSliceValues + i);
        },
        [&](unsigned slice, const double* x) {
          VS_UNROLL(16)
          for (unsigned i = 0; i < kSliceValues; ++i) {
            const unsigned at = slice + i * kSlices;
            coded.values[at] = ring_value(coded, flipped(x[i], signs, at), at, scale_shift);
          }
        });
  }
}

// --- launchers ---------------------------------------------------------------------------

int decode_eden(const Launch& launch, const DecodeTiles& job) {
  EdenCentroids centroids = {};
  for (unsigned i = 0; i < kEdenMostCodes / 2; ++i)
    centroids.positive[i] = kEdenCentroids[job.bits - 1][i];
  return launch_kernel("eden_kernel", launch, choose_blocks(launch, job.tiles, kMostBlocks),
                       choose_threads(launch, kThreads),
                       kRotationTile * sizeof(float) + sizeof(EdenShared), eden_kernel, job,
                       centroids);
}

int decode_ring(const Launch& launch, const DecodeTiles& job) {
  unsigned shift = 6;
  while (1u << shift < job.scale_block) ++shift;
  const unsigned blocks = choose_blocks(launch, job.tiles, kMostBlocks);
  const unsigned threads = choose_threads(launch, kThreads);
  if (job.rotation_block == 0)
    return launch_kernel("ring_kernel", launch, blocks, threads, 0, ring_kernel, job, shift);
  return launch_kernel("rotated_ring_kernel", launch, blocks, threads,
                       kRotationTile * sizeof(double) + kSignWords * sizeof(std::uint32_t),
                       rotated_ring_kernel, job, shift);
}

int decode(const Launch& launch, const DecodeTiles& job) {
  return job.packing == WindowPacking::eden ? decode_eden(launch, job) : decode_ring(launch, job);
}

}  // namespace

extern const DecodeLaunchers VS_DEVICE_TABLE(decode);
const DecodeLaunchers VS_DEVICE_TABLE(decode) = {decode};

}  // namespace veilsum
