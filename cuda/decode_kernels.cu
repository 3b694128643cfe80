// Packed tiles to values: a block of threads per tile, whose values are written once.
#include "device/decode_launchers.h"

#include "codes.h"
#include "element/bits.h"
#include "element/eden.h"
#include "element/quantize.h"
#include "hadamard.h"

namespace veilsum {
namespace {

constexpr unsigned kThreads = kSlices;
constexpr std::size_t kMostBlocks = 4096;
constexpr int kInvalid = 1;  // "invalid argument", of CUDA and of the emulator

__device__ __forceinline__ RotationShape shape_of(const DecodeTiles& job, const PackedTile& tile) {
  return {job.rotation_block, tile.count};
}

__device__ __forceinline__ PackedTile load_tile(const DecodeTiles& job, std::size_t number) {
  PackedTile tile = job.tile[number];
  tile.codes = global_memory(tile.codes);
  tile.scales = global_memory(tile.scales);
  tile.ends = global_memory(tile.ends);
  tile.values = global_memory(tile.values);
  return tile;
}

// --- values ------------------------------------------------------------------------------

// Coordinates that a thread decodes at once: all of one block of 64, and of one of its scales.
constexpr unsigned kRun = 4;

template <class Value>
__device__ __forceinline__ void store_value(const PackedTile& coded, unsigned at, float value) {
  static_cast<Value*>(coded.values)[at] = value;
}

__device__ __forceinline__ void store_run(const DecodeTiles& job, const PackedTile& coded,
                                          unsigned at, const float* x) {
  if (job.wide) {
    auto* const values = static_cast<double*>(coded.values) + at;
    store_aligned(values, double2{x[0], x[1]});
    store_aligned(values + 2, double2{x[2], x[3]});
  } else {
    store_aligned(static_cast<float*>(coded.values) + at, float4{x[0], x[1], x[2], x[3]});
  }
}

// --- subsamples --------------------------------------------------------------------------

__device__ __forceinline__ bool is_kept(const PackedTile& coded, unsigned at) {
  return (coded.kept >> at / 64 & 1) != 0;
}

// Where a coordinate's code lies if only kept blocks have any.
__device__ __forceinline__ unsigned coded_place(const PackedTile& coded, unsigned at) {
  const std::uint64_t before = coded.kept & ((std::uint64_t{1} << at / 64) - 1);
  return 64 * static_cast<unsigned>(__popcll(before)) + at % 64;
}

// As the host takes it: in double, rounded once. A gain of 1 changes nothing.
__device__ __forceinline__ float grown(float value, double gain) {
  return gain == 1 ? value : static_cast<float>(static_cast<double>(value) * gain);
}

// --- codes -------------------------------------------------------------------------------
//
// Each reads the codes of kRun coordinates, from number `from` on, in one load.

struct CodeRun {
  const unsigned char* codes;
  unsigned from;
  float scale;
  const float* table;  // what the sixteen codes of a nibble stand for
};

struct FloatRun {
  __device__ static void read(const CodeRun& run, float* x) {
    const float4 four = load_aligned<float4>(run.codes + 4 * run.from);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  }
};

template <class Widen>
struct HalfRun {
  __device__ static void read(const CodeRun& run, float* x) {
    const uint2 four = load_aligned<uint2>(run.codes + 2 * run.from);
    const std::uint32_t words[] = {four.x, four.y};
    VS_UNROLL(4)
    for (unsigned i = 0; i < kRun; ++i)
      x[i] = Widen::widen(static_cast<std::uint16_t>(words[i / 2] >> 16 * (i % 2)));
  }
};

struct Int8Run {
  __device__ static void read(const CodeRun& run, float* x) {
    const auto four = load_aligned<std::uint32_t>(run.codes + run.from);
    VS_UNROLL(4)
    for (unsigned i = 0; i < kRun; ++i)
      x[i] = static_cast<float>(static_cast<std::int8_t>(four >> 8 * i)) * run.scale;
  }
};

struct NibbleRun {
  __device__ static void read(const CodeRun& run, float* x) {
    const unsigned four = load_aligned<std::uint16_t>(run.codes + run.from / 2);
    VS_UNROLL(4)
    for (unsigned i = 0; i < kRun; ++i) x[i] = run.table[four >> 4 * i & 15] * run.scale;
  }
};

template <class Format>
struct Fp8Run {
  __device__ static void read(const CodeRun& run, float* x) {
    const auto four = load_aligned<std::uint32_t>(run.codes + run.from);
    VS_UNROLL(4)
    for (unsigned i = 0; i < kRun; ++i)
      x[i] = fp8_value<Format>(static_cast<std::uint8_t>(four >> 8 * i), run.scale);
  }
};

struct SignRun {
  __device__ static void read(const CodeRun& run, float* x) {
    const unsigned bits = run.codes[run.from / 8] >> run.from % 8;
    VS_UNROLL(4)
    for (unsigned i = 0; i < kRun; ++i) x[i] = (bits >> i & 1) != 0 ? -run.scale : run.scale;
  }
};

struct CodeRule {
  unsigned scale_shift;
  CodeTable table;  // of a kind of nibbles
};

template <class Run>
__device__ __forceinline__ void read_run(const DecodeTiles& job, const PackedTile& coded,
                                         unsigned at, unsigned scale_shift, const float* table,
                                         float* x) {
  const unsigned from = coded_place(coded, at);
  const float scale = load_scale(job.scale_format, coded.scales, from, scale_shift);
  Run::read({coded.codes, from, scale, table}, x);
  const unsigned end = coded.ends[at / 64];
  VS_UNROLL(4)
  for (unsigned i = 0; i < kRun; ++i) x[i] = at % 64 + i < end ? grown(x[i], coded.gain) : 0;
}

template <class Run>
__global__ void __launch_bounds__(kThreads) codes_kernel(DecodeTiles job, CodeRule rule) {
  auto* const table = shared_memory<float>();
  // Without an index that varies, for which the parameter would be copied to local memory.
  VS_UNROLL(16)
  for (unsigned i = 0; i < kTableCodes; ++i)
    if (threadIdx.x == i) table[i] = rule.table.value[i];
  __syncthreads();
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = load_tile(job, number);
    for (unsigned at = kRun * threadIdx.x; at < kRotationTile; at += kRun * blockDim.x) {
      float x[kRun] = {};
      if (is_kept(coded, at)) read_run<Run>(job, coded, at, rule.scale_shift, table, x);
      store_run(job, coded, at, x);
    }
  }
}

// --- topk --------------------------------------------------------------------------------

__device__ __forceinline__ float kept_value(const DecodeTiles& job, const PackedTile& coded,
                                            unsigned entry) {
  return load_scale(job.scale_format, coded.scales, entry, 0);
}

// No two entries have one index, so that no order of them shows. A tile is put together in shared
// memory: global memory is then written once, and in whole lines.
__global__ void __launch_bounds__(kThreads) topk_kernel(DecodeTiles job) {
  auto* const tile = shared_memory<float>();
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = load_tile(job, number);
    const auto* const indices = reinterpret_cast<const std::uint32_t*>(coded.codes);
    for (unsigned at = kRun * threadIdx.x; at < kRotationTile; at += kRun * blockDim.x)
      store_aligned(tile + at, float4{0, 0, 0, 0});
    __syncthreads();
    for (unsigned entry = threadIdx.x; entry < coded.entries; entry += blockDim.x)
      tile[read_word_field(indices, coded.skipped + entry, kIndexBits)] =
          kept_value(job, coded, entry);
    __syncthreads();
    for (unsigned at = kRun * threadIdx.x; at < kRotationTile; at += kRun * blockDim.x) {
      const float4 four = load_aligned<float4>(tile + at);
      const float x[] = {four.x, four.y, four.z, four.w};
      store_run(job, coded, at, x);
    }
    __syncthreads();
  }
}

// --- eden --------------------------------------------------------------------------------
//
// A thread reads the codes of 16 consecutive coordinates, which are 2 bytes per bit of a code.

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

// Zeros of a block without a scale may come out negative: neither sums nor rules show it.
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

template <class Value>
__global__ void __launch_bounds__(kThreads) eden_kernel(DecodeTiles job, EdenCentroids centroids) {
  auto* const tile = shared_memory<float>();
  auto& shared = *reinterpret_cast<EdenShared*>(tile + kRotationTile);
  // Without an index that varies, for which the parameter would be copied to local memory.
  VS_UNROLL(8)
  for (unsigned i = 0; i < kEdenMostCodes / 2; ++i)
    if (threadIdx.x == i) shared.positive[i] = centroids.positive[i];
  __syncthreads();
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = load_tile(job, number);
    prepare_eden(job, coded, shared);
    __syncthreads();
    transform_tile(
        shape_of(job, coded), tile,
        [&](unsigned slice, float* x) { load_eden_slice(job, coded, shared, slice, x); },
        [&](unsigned slice, const float* x) {
          VS_UNROLL(16)
          for (unsigned i = 0; i < kSliceValues; ++i) {
            const unsigned at = slice + i * kSlices;
            const float value = flipped(x[i], shared.signs, at);
            store_value<Value>(coded, at, at % 64 < coded.ends[at / 64] ? value : 0);
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

// All steps of a subsampled tile have one scale.
__device__ __forceinline__ float kept_ring_value(const PackedTile& coded, unsigned bits,
                                                 unsigned at, unsigned scale_shift) {
  if (!is_kept(coded, at)) return 0;
  const double step = ring_step(coded, bits, coded_place(coded, at));
  return grown(ring_value(coded, step, at, scale_shift), coded.gain);
}

template <class Value, bool kSubsampled>
__global__ void __launch_bounds__(kThreads) ring_kernel(DecodeTiles job, unsigned scale_shift) {
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = load_tile(job, number);
    for (unsigned at = threadIdx.x; at < kRotationTile; at += blockDim.x) {
      if constexpr (kSubsampled)
        store_value<Value>(coded, at, kept_ring_value(coded, job.bits, at, scale_shift));
      else
        store_value<Value>(coded, at,
                           ring_value(coded, ring_step(coded, job.bits, at), at, scale_shift));
    }
  }
}

template <class Value>
__global__ void __launch_bounds__(kThreads)
    rotated_ring_kernel(DecodeTiles job, unsigned scale_shift) {
  auto* const tile = shared_memory<double>();
  auto* const signs = reinterpret_cast<std::uint32_t*>(tile + kRotationTile);
  for (std::size_t number = blockIdx.x; number < job.tiles; number += gridDim.x) {
    const PackedTile coded = load_tile(job, number);
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
            store_value<Value>(coded, at,
                               ring_value(coded, flipped(x[i], signs, at), at, scale_shift));
          }
        });
  }
}

// --- launchers ---------------------------------------------------------------------------

template <class Run>
int launch_codes(const Launch& launch, const DecodeTiles& job, const CodeRule& rule) {
  return launch_kernel("codes_kernel", launch, choose_blocks(launch, job.tiles, kMostBlocks),
                       choose_threads(launch, kThreads), kTableCodes * sizeof(float),
                       codes_kernel<Run>, job, rule);
}

int decode_codes(const Launch& launch, const DecodeTiles& job) {
  const unsigned shift = scale_shift_of(job.scale_block);
  switch (job.kind) {
    case WindowCodes::f32:
      return launch_codes<FloatRun>(launch, job, {shift, {}});
    case WindowCodes::f16:
      return launch_codes<HalfRun<WidenHalf>>(launch, job, {shift, {}});
    case WindowCodes::bf16:
      return launch_codes<HalfRun<WidenBrain>>(launch, job, {shift, {}});
    case WindowCodes::int8:
      return launch_codes<Int8Run>(launch, job, {shift, {}});
    case WindowCodes::int4:
      return launch_codes<NibbleRun>(launch, job, {shift, kInt4Table});
    case WindowCodes::nf4:
      return launch_codes<NibbleRun>(launch, job, {shift, kNf4Table});
    case WindowCodes::fp4:
      return launch_codes<NibbleRun>(launch, job, {shift, kFp4Table});
    case WindowCodes::fp8_e4m3:
      return launch_codes<Fp8Run<E4M3>>(launch, job, {shift, {}});
    case WindowCodes::fp8_e5m2:
      return launch_codes<Fp8Run<E5M2>>(launch, job, {shift, {}});
    case WindowCodes::sign:
      return launch_codes<SignRun>(launch, job, {shift, {}});
    case WindowCodes::f64:
      break;
  }
  return kInvalid;
}

int decode_topk(const Launch& launch, const DecodeTiles& job) {
  return launch_kernel("topk_kernel", launch, choose_blocks(launch, job.tiles, kMostBlocks),
                       choose_threads(launch, kThreads), kRotationTile * sizeof(float), topk_kernel,
                       job);
}

int decode_eden(const Launch& launch, const DecodeTiles& job) {
  EdenCentroids centroids = {};
  for (unsigned i = 0; i < kEdenMostCodes / 2; ++i)
    centroids.positive[i] = kEdenCentroids[job.bits - 1][i];
  return launch_kernel("eden_kernel", launch, choose_blocks(launch, job.tiles, kMostBlocks),
                       choose_threads(launch, kThreads),
                       kRotationTile * sizeof(float) + sizeof(EdenShared),
                       job.wide ? eden_kernel<double> : eden_kernel<float>, job, centroids);
}

template <class Value>
int launch_ring(const Launch& launch, const DecodeTiles& job) {
  const unsigned shift = scale_shift_of(job.scale_block);
  const unsigned blocks = choose_blocks(launch, job.tiles, kMostBlocks);
  const unsigned threads = choose_threads(launch, kThreads);
  if (job.rotation_block == 0)
    return launch_kernel("ring_kernel", launch, blocks, threads, 0,
                         job.subsampled ? ring_kernel<Value, true> : ring_kernel<Value, false>, job,
                         shift);
  return launch_kernel("rotated_ring_kernel", launch, blocks, threads,
                       kRotationTile * sizeof(double) + kSignWords * sizeof(std::uint32_t),
                       rotated_ring_kernel<Value>, job, shift);
}

int decode(const Launch& launch, const DecodeTiles& job) {
  switch (job.packing) {
    case WindowPacking::codes:
      return decode_codes(launch, job);
    case WindowPacking::ring:
      return job.wide ? launch_ring<double>(launch, job) : launch_ring<float>(launch, job);
    case WindowPacking::eden:
      return decode_eden(launch, job);
    case WindowPacking::topk:
      return decode_topk(launch, job);
    case WindowPacking::none:
      break;
  }
  return kInvalid;
}

}  // namespace

extern const DecodeLaunchers VS_DEVICE_TABLE(decode);
const DecodeLaunchers VS_DEVICE_TABLE(decode) = {decode};

}  // namespace veilsum
