// Tensors in device memory: what is noted of their tiles when they arrive, and tiles of values for
// kernels that take them. One block per tile; tensors start on multiples of 64 coordinates, so that
// all of a warp looks at one tensor.
#include "device.h"
#include "device/tensor_launchers.h"
#include "element/fixed_point.h"
#include "element/quotient.h"
#include "values.h"

namespace veilsum {
namespace {

constexpr unsigned kTileValues = 4096;
constexpr unsigned kThreads = 256;
constexpr unsigned kWarp = 32;
constexpr std::size_t kMostBlocks = 4096;
constexpr std::uint32_t kMagnitude32 = 0x7FFFFFFFu;

// --- where coordinates lie ---------------------------------------------------------------

// The first tensor that does not end before the coordinate.
__device__ std::size_t find_tensor(const DeviceTensors& tensors, std::uint64_t coordinate) {
  std::size_t low = 0;
  std::size_t high = tensors.count;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    const DeviceTensor& tensor = tensors.tensor[middle];
    if (tensor.first + tensor.elements <= coordinate)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Walks upwards through the coordinates of a tile.
struct Cursor {
  const DeviceTensors& tensors;
  std::size_t number;

  // The element that a coordinate is, and its tensor; null for a gap.
  __device__ const DeviceTensor* at(std::uint64_t coordinate, std::uint64_t& element) {
    while (number < tensors.count &&
           tensors.tensor[number].first + tensors.tensor[number].elements <= coordinate)
      ++number;
    if (number == tensors.count || tensors.tensor[number].first > coordinate) return nullptr;
    element = coordinate - tensors.tensor[number].first;
    return tensors.tensor + number;
  }
};

__device__ __forceinline__ float load_narrow(const DeviceTensor& tensor, std::uint64_t element) {
  return load_narrow(tensor.data, tensor.format, element);
}
__device__ __forceinline__ double load_wide(const DeviceTensor& tensor, std::uint64_t element) {
  return load_wide(tensor.data, tensor.format, element);
}

// --- magnitudes --------------------------------------------------------------------------

// Patterns of magnitudes order like magnitudes, and those of what is not finite come last.
struct Largest {
  std::uint32_t narrow;
  std::uint64_t wide;

  __device__ void see(const DeviceTensor& tensor, std::uint64_t element) {
    if (tensor.format == MeanFormat::f64) {
      const std::uint64_t bits = bits_of_double(load_wide(tensor, element)) & kMagnitude;
      wide = bits > wide ? bits : wide;
    } else {
      const std::uint32_t bits = bits_of_float(load_narrow(tensor, element)) & kMagnitude32;
      narrow = bits > narrow ? bits : narrow;
    }
  }

  __device__ std::uint64_t pattern() const {
    const std::uint64_t widened = bits_of_double(float_of_bits(narrow)) & kMagnitude;
    return widened > wide ? widened : wide;
  }
};

// A whole tile of floats that lie together: four at a time, all on their way at once.
__device__ void see_floats(const unsigned char* values, Largest& largest) {
  VS_UNROLL(4)
  for (unsigned i = 4 * threadIdx.x; i < kTileValues; i += 4 * blockDim.x) {
    const uint4 four = load_global<uint4>(values + 4 * i);
    const std::uint32_t words[] = {four.x, four.y, four.z, four.w};
    for (const std::uint32_t word : words) {
      const std::uint32_t bits = word & kMagnitude32;
      largest.narrow = bits > largest.narrow ? bits : largest.narrow;
    }
  }
}

// Where the floats of a whole tile lie together, on a multiple of 16 bytes; else null.
__device__ const unsigned char* whole_floats(const Cursor& cursor, std::uint64_t first) {
  if (cursor.number == cursor.tensors.count) return nullptr;
  const DeviceTensor& tensor = cursor.tensors.tensor[cursor.number];
  if (tensor.format != MeanFormat::f32 || tensor.first > first ||
      tensor.first + tensor.elements < first + kTileValues)
    return nullptr;
  const unsigned char* const values = tensor.data + 4 * (first - tensor.first);
  return reinterpret_cast<std::uintptr_t>(values) % 16 == 0 ? values : nullptr;
}

__device__ void see_elements(Cursor& cursor, std::uint64_t first, Largest& largest) {
  for (unsigned i = threadIdx.x; i < kTileValues; i += blockDim.x) {
    std::uint64_t element;
    if (const DeviceTensor* tensor = cursor.at(first + i, element)) largest.see(*tensor, element);
  }
}

__device__ std::uint64_t largest_of_warp(std::uint64_t pattern) {
  for (unsigned half = kWarp / 2; half > 0; half /= 2) {
    const auto other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(pattern), half);
    pattern = other > pattern ? other : pattern;
  }
  return pattern;
}

// Of a block; for thread 0. `warps` has a place per warp.
__device__ std::uint64_t largest_of_block(std::uint64_t pattern, std::uint64_t* warps) {
  const std::uint64_t own = largest_of_warp(pattern);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = own;
  __syncthreads();
  std::uint64_t found = 0;
  if (threadIdx.x == 0)
    for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp)
      found = warps[warp] > found ? warps[warp] : found;
  __syncthreads();  // the places are used again for the next tile
  return found;
}

__global__ void __launch_bounds__(kThreads) screen_kernel(TensorScreening job) {
  auto* const warps = shared_memory<std::uint64_t>();
  for (std::size_t tile = blockIdx.x; tile < job.tiles; tile += gridDim.x) {
    const std::uint64_t first = std::uint64_t{tile} * kTileValues;
    Cursor cursor = {job.tensors, find_tensor(job.tensors, first)};
    Largest largest = {};
    if (const unsigned char* const floats = whole_floats(cursor, first))
      see_floats(floats, largest);
    else
      see_elements(cursor, first, largest);
    const std::uint64_t found = largest_of_block(largest.pattern(), warps);
    if (threadIdx.x == 0) job.largest[tile] = found;
  }
}

// --- squares -----------------------------------------------------------------------------

// Value i of a tile goes to lane i % 16, lanes are added in halves: the CPU's order.
constexpr unsigned kSquareLanes = 16;

__device__ double sum_of_lane(const DeviceTensors& tensors, std::uint64_t first, unsigned lane) {
  Cursor cursor = {tensors, find_tensor(tensors, first)};
  double sum = 0;
  for (unsigned i = lane; i < kTileValues; i += kSquareLanes) {
    std::uint64_t element;
    const DeviceTensor* const tensor = cursor.at(first + i, element);
    const double value = tensor != nullptr ? load_wide(*tensor, element) : 0;
    sum += value * value;
  }
  return sum;
}

__device__ double sum_of_lanes(double sum) {
  for (unsigned half = kSquareLanes / 2; half > 0; half /= 2)
    sum += __shfl_down_sync(0xffffffffu, sum, half, kSquareLanes);
  return sum;
}

// A half warp per tile. All threads of a warp come to the shuffles, with a tile or without.
__global__ void __launch_bounds__(kThreads) squares_kernel(TensorScreening job) {
  const std::size_t per_block = blockDim.x / kSquareLanes;
  const unsigned lane = threadIdx.x % kSquareLanes;
  const std::size_t rounds = (job.tiles + per_block - 1) / per_block;
  for (std::size_t round = blockIdx.x; round < rounds; round += gridDim.x) {
    const std::size_t tile = round * per_block + threadIdx.x / kSquareLanes;
    const bool exists = tile < job.tiles;
    const double own =
        exists ? sum_of_lane(job.tensors, std::uint64_t{tile} * kTileValues, lane) : 0;
    const double squares = sum_of_lanes(own);
    if (exists && lane == 0) job.squares[tile] = squares;
  }
}

// --- tiles of values -----------------------------------------------------------------------

__device__ void store_value(unsigned char* values, unsigned i, WindowCodes codes,
                            const DeviceTensor* tensor, std::uint64_t element) {
  if (codes == WindowCodes::f64)
    store_aligned(values + 8 * i, tensor != nullptr ? load_wide(*tensor, element) : 0.0);
  else if (codes == WindowCodes::f32)
    store_aligned(values + 4 * i, tensor != nullptr ? load_narrow(*tensor, element) : 0.0F);
  else  // patterns as they are
    store_aligned(values + 2 * i, tensor != nullptr
                                      ? load_global<std::uint16_t>(tensor->data + 2 * element)
                                      : std::uint16_t{0});
}

__global__ void __launch_bounds__(kThreads) gather_kernel(TensorGather job) {
  for (std::size_t number = blockIdx.x; number < job.count; number += gridDim.x) {
    const GatheredTile own = job.tile[number];
    const std::uint64_t first = std::uint64_t{own.tile} * kTileValues;
    Cursor cursor = {job.tensors, find_tensor(job.tensors, first)};
    Largest largest = {};
    for (unsigned i = threadIdx.x; i < kTileValues; i += blockDim.x) {
      std::uint64_t element = 0;
      const DeviceTensor* const tensor = cursor.at(first + i, element);
      store_value(own.values, i, job.codes, tensor, element);
      if (job.beyond != nullptr && tensor != nullptr) largest.see(*tensor, element);
    }
    if (job.beyond != nullptr && largest.pattern() > own.limit) atomicMax(job.beyond, 1u);
  }
}

// --- launchers -------------------------------------------------------------------------------

int launch_squares(const Launch& launch, const TensorScreening& screening) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t rounds = (screening.tiles * kSquareLanes + threads - 1) / threads;
  return launch_kernel("squares_kernel", launch, choose_blocks(launch, rounds, kMostBlocks),
                       threads, 0, squares_kernel, screening);
}

int screen(const Launch& launch, const TensorScreening& screening) {
  const unsigned threads = choose_threads(launch, kThreads);
  const int status =
      launch_kernel("screen_kernel", launch, choose_blocks(launch, screening.tiles, kMostBlocks),
                    threads, threads / kWarp * sizeof(std::uint64_t), screen_kernel, screening);
  if (status != 0 || screening.squares == nullptr) return status;
  return launch_squares(launch, screening);
}

int gather(const Launch& launch, const TensorGather& gather) {
  if (gather.count == 0) return 0;
  return launch_kernel("gather_kernel", launch, choose_blocks(launch, gather.count, kMostBlocks),
                       choose_threads(launch, kThreads), 0, gather_kernel, gather);
}

}  // namespace

extern const TensorLaunchers VS_DEVICE_TABLE(tensors);
const TensorLaunchers VS_DEVICE_TABLE(tensors) = {screen, gather};

}  // namespace veilsum
