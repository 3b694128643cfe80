// The rotation of device arrays: a block of threads per tile, in place.
#include "device/rotation_launchers.h"

#include "hadamard.h"

namespace veilsum {
namespace {

constexpr unsigned kThreads = kSlices;
constexpr std::size_t kMostBlocks = 4096;

// A slice of consecutive values, in vectors of 16 bytes; zeros beyond the end.
template <class Value>
__device__ __forceinline__ void load_slice(const Value* values, unsigned count, unsigned slice,
                                           Value* x) {
  constexpr unsigned kVector = 16 / sizeof(Value);
  struct alignas(16) Vector {
    Value value[kVector];
  };
  if (slice * kSliceValues >= count) {
    VS_UNROLL(16)
    for (unsigned i = 0; i < kSliceValues; ++i) x[i] = 0;
    return;
  }
  VS_UNROLL(8)
  for (unsigned i = 0; i < kSliceValues; i += kVector) {
    const auto vector = load_aligned<Vector>(values + slice * kSliceValues + i);
    for (unsigned j = 0; j < kVector; ++j) x[i + j] = vector.value[j];
  }
}

template <class Value, bool kInverse>
__global__ void __launch_bounds__(kThreads) rotate_kernel(RotateValues job) {
  auto* const tile = shared_memory<Value>();
  auto* const signs = reinterpret_cast<std::uint32_t*>(tile + kRotationTile);
  for (std::size_t begin = blockIdx.x * kRotationTile; begin < job.count;
       begin += gridDim.x * kRotationTile) {
    auto* const values = static_cast<Value*>(job.values) + begin;
    const std::size_t left = job.count - begin;
    const RotationShape shape = {
        job.block, left < kRotationTile ? static_cast<unsigned>(left) : unsigned{kRotationTile}};
    write_sign_words(job.first + begin, job.group, job.key, signs);
    __syncthreads();
    transform_tile(
        shape, tile,
        [&](unsigned slice, Value* x) {
          load_slice(values, shape.count, slice, x);
          if constexpr (!kInverse) {
            VS_UNROLL(16)
            for (unsigned i = 0; i < kSliceValues; ++i)
              x[i] = flipped(x[i], signs, slice * kSliceValues + i);
          }
        },
        [&](unsigned slice, const Value* x) {
          VS_UNROLL(16)
          for (unsigned i = 0; i < kSliceValues; ++i) {
            const unsigned at = slice + i * kSlices;
            if (at < shape.count) values[at] = kInverse ? flipped(x[i], signs, at) : x[i];
          }
        });
  }
}

template <class Value, bool kInverse>
int launch_rotation(const Launch& launch, const RotateValues& job) {
  const std::size_t tiles = (job.count + kRotationTile - 1) / kRotationTile;
  return launch_kernel("rotate_kernel", launch, choose_blocks(launch, tiles, kMostBlocks),
                       choose_threads(launch, kThreads),
                       kRotationTile * sizeof(Value) + kSignWords * sizeof(std::uint32_t),
                       rotate_kernel<Value, kInverse>, job);
}

int rotate(const Launch& launch, const RotateValues& job) {
  if (job.wide)
    return job.inverse ? launch_rotation<double, true>(launch, job)
                       : launch_rotation<double, false>(launch, job);
  return job.inverse ? launch_rotation<float, true>(launch, job)
                     : launch_rotation<float, false>(launch, job);
}

}  // namespace

extern const RotationLaunchers VS_DEVICE_TABLE(rotation);
const RotationLaunchers VS_DEVICE_TABLE(rotation) = {rotate};

}  // namespace veilsum
