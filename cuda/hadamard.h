// The Hadamard transform of a tile of 4096 coordinates by one block of threads, with one read and
// one write of global memory.
//
// A tile is 256 slices of 16 values, and the twelve strides are three passes of four. In pass p a
// slice's values lie 16^p apart, so that its four strides need nothing but the registers of one
// thread; shared memory hands the values on from pass to pass. That is 64 accesses to it per 16
// values; crossing the lanes of a warp by shuffles would be 80 of the same price, and leave three
// strides for shared memory. The order of the strides is that of the CPU, and so is the tree of
// roundings.
#pragma once

#include "device.h"
#include "element/rotation.h"

namespace veilsum {
namespace {

constexpr unsigned kSliceValues = 16;
constexpr unsigned kSlices = kRotationTile / kSliceValues;
constexpr unsigned kSignWords = kRotationTile / 32;  // of a tile

// Blocks of a tile with `count` coordinates, a multiple of 64; the largest has `block`.
struct RotationShape {
  unsigned block;
  unsigned count;
};

// Where a value of the tile lies in shared memory: in each of the passes the values that a warp
// asks for at once lie in different banks (of doubles: those of half a warp).
__device__ __forceinline__ unsigned tile_place(unsigned at) { return at ^ (at >> 4 & 31); }

// The coordinate of a slice's first value in a pass.
template <unsigned kPass>
__device__ __forceinline__ unsigned slice_begin(unsigned slice) {
  return kPass == 0 ? slice * 16 : kPass == 1 ? slice / 16 * 256 + slice % 16 : slice;
}

template <unsigned kPass>
constexpr unsigned kSliceStride = 1u << 4 * kPass;

// Coordinates, from the first of the tile on, whose blocks have the stride at all. A value and its
// partner always lie on the same side, because blocks lie at multiples of their size.
__device__ __forceinline__ unsigned crossed_end(const RotationShape& shape, unsigned stride) {
  const unsigned size = stride < 64 ? 64 : stride < 256 ? 256 : stride < 1024 ? 1024 : 4096;
  return rotation_blocks_end(shape.block, shape.count, size);
}

template <unsigned kPass, unsigned kStride, class Value>
__device__ __forceinline__ void cross_stride(const RotationShape& shape, unsigned begin, Value* x) {
  const unsigned end = crossed_end(shape, kStride * kSliceStride<kPass>);
  VS_UNROLL(16)
  for (unsigned i = 0; i < kSliceValues; ++i) {
    if ((i & kStride) != 0) continue;
    const bool crossed = begin + i * kSliceStride<kPass> < end;
    const Value sum = x[i] + x[i + kStride];
    const Value difference = x[i] - x[i + kStride];
    x[i] = crossed ? sum : x[i];
    x[i + kStride] = crossed ? difference : x[i + kStride];
  }
}

template <unsigned kPass, class Value>
__device__ __forceinline__ void cross_slice(const RotationShape& shape, unsigned slice, Value* x) {
  const unsigned begin = slice_begin<kPass>(slice);
  cross_stride<kPass, 1>(shape, begin, x);
  cross_stride<kPass, 2>(shape, begin, x);
  cross_stride<kPass, 4>(shape, begin, x);
  cross_stride<kPass, 8>(shape, begin, x);
}

template <unsigned kPass, class Value>
__device__ __forceinline__ void read_slice(const Value* tile, unsigned slice, Value* x) {
  VS_UNROLL(16)
  for (unsigned i = 0; i < kSliceValues; ++i)
    x[i] = tile[tile_place(slice_begin<kPass>(slice) + i * kSliceStride<kPass>)];
}

template <unsigned kPass, class Value>
__device__ __forceinline__ void write_slice(Value* tile, unsigned slice, const Value* x) {
  VS_UNROLL(16)
  for (unsigned i = 0; i < kSliceValues; ++i)
    tile[tile_place(slice_begin<kPass>(slice) + i * kSliceStride<kPass>)] = x[i];
}

// load(slice, x) gets values 16 * slice .. 16 * slice + 15, store(slice, x) values slice,
// slice + 256, .. slice + 3840. Values from shape.count on come out as they were. All threads of
// the block take part; behind a barrier at the end, `tile` is free again.
template <class Value, class Load, class Store>
__device__ __forceinline__ void transform_tile(const RotationShape& shape, Value* tile,
                                               const Load& load, const Store& store) {
  for (unsigned slice = threadIdx.x; slice < kSlices; slice += blockDim.x) {
    Value x[kSliceValues];
    load(slice, x);
    const Value scale =
        rotation_scale(rotation_block_at(shape.block, shape.count, slice * kSliceValues));
    VS_UNROLL(16)
    for (unsigned i = 0; i < kSliceValues; ++i) x[i] = x[i] * scale;
    cross_slice<0>(shape, slice, x);
    write_slice<0>(tile, slice, x);
  }
  __syncthreads();
  for (unsigned slice = threadIdx.x; slice < kSlices; slice += blockDim.x) {
    Value x[kSliceValues];
    read_slice<1>(tile, slice, x);
    cross_slice<1>(shape, slice, x);
    write_slice<1>(tile, slice, x);  // to the places that it came from
  }
  __syncthreads();
  for (unsigned slice = threadIdx.x; slice < kSlices; slice += blockDim.x) {
    Value x[kSliceValues];
    read_slice<2>(tile, slice, x);
    cross_slice<2>(shape, slice, x);
    store(slice, x);
  }
  __syncthreads();
}

// --- signs -------------------------------------------------------------------------------

// Sign bits of the tile that begins at coordinate `first`, one per coordinate. The caller puts a
// barrier behind it.
__device__ __forceinline__ void write_sign_words(std::uint64_t first, std::uint32_t group,
                                                 PhiloxKey key, std::uint32_t* words) {
  for (unsigned run = threadIdx.x; run < kSignWords / 4; run += blockDim.x) {
    const PhiloxBlock block = sign_words(first / kSignsPerCounter + run, group, key);
    for (unsigned i = 0; i < 4; ++i) words[4 * run + i] = block.word[i];
  }
}

template <class Value>
__device__ __forceinline__ Value flipped(Value value, const std::uint32_t* words, unsigned at) {
  return (words[at / 32] >> at % 32 & 1) != 0 ? -value : value;
}

}  // namespace
}  // namespace veilsum
