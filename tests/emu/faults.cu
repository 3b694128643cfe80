// See faults.h. Every kernel after the right ones has one thing wrong, named by its name.
#include "faults.h"

#include "device.h"

namespace veilsum {
namespace {

constexpr unsigned kThreads = 64;
constexpr std::size_t kMostBlocks = 8;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ std::size_t first_place() { return std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ std::size_t step() { return std::size_t{gridDim.x} * blockDim.x; }

// --- right ---------------------------------------------------------------------------------

__device__ unsigned sum_of_warp(unsigned value) {
  for (unsigned distance = 16; distance > 0; distance /= 2)
    value += __shfl_down_sync(kAllLanes, value, distance);
  return value;
}

__global__ void sum_kernel(FaultJob job) {
  auto* const sums = shared_memory<unsigned>();
  unsigned own = 0;
  for (std::size_t i = first_place(); i < job.count; i += step()) own += job.from[i];
  own = sum_of_warp(own);
  if (threadIdx.x % warpSize == 0) sums[threadIdx.x / warpSize] = own;
  __syncthreads();
  if (threadIdx.x >= warpSize) return;
  const unsigned warps = blockDim.x / warpSize;
  const unsigned total = sum_of_warp(threadIdx.x < warps ? sums[threadIdx.x] : 0);
  if (threadIdx.x == 0) atomicAdd(job.total, total);
}

__global__ void count_odd_kernel(FaultJob job) {
  for (std::size_t i = first_place(); i < job.count; i += step()) {
    const unsigned votes = __ballot_sync(kAllLanes, static_cast<int>(job.from[i] & 1));
    if (threadIdx.x % warpSize == 0) atomicAdd(job.total, static_cast<unsigned>(__popc(votes)));
  }
}

// The second barrier keeps a fast thread's next value out of what a slow one still reads.
__global__ void reverse_kernel(FaultJob job) {
  auto* const values = shared_memory<unsigned>();
  for (std::size_t i = first_place(); i < job.count; i += step()) {
    values[threadIdx.x] = job.from[i];
    __syncthreads();
    job.to[i] = values[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
  }
}

__global__ void extremes_kernel(FaultJob job) {
  for (std::size_t i = first_place(); i < job.count; i += step()) {
    atomicOr(&job.to[0], job.from[i]);
    atomicMax(&job.to[1], job.from[i]);
    atomicMin(&job.to[2], job.from[i]);
  }
}

__global__ void triple_kernel(FaultJob job) {
  for (std::size_t i = first_place(); i < job.count; i += step()) job.to[i] = 3 * job.from[i];
}

__global__ void rotate_kernel(FaultJob job) {
  for (std::size_t i = first_place(); i < job.count; i += step())
    job.to[i] = __shfl_sync(kAllLanes, job.from[i], static_cast<int>(threadIdx.x + 1) % warpSize);
}

// --- memory --------------------------------------------------------------------------------

__global__ void read_past_the_end_kernel(FaultJob job) {
  for (std::size_t i = first_place(); i < job.count; i += step()) job.to[i] = job.from[i + 1];
}

__global__ void write_past_shared_memory_kernel(FaultJob job) {
  shared_memory<unsigned>()[threadIdx.x + 1] = job.from[threadIdx.x];
}

__global__ void load_misaligned_kernel(FaultJob job) {
  job.to[threadIdx.x] = load_aligned<uint4>(job.from + 1).x;
}

__global__ void read_unwritten_shared_memory_kernel(FaultJob job) {
  job.to[first_place()] = shared_memory<unsigned>()[threadIdx.x];
}

// --- order ---------------------------------------------------------------------------------

__global__ void miss_a_barrier_kernel(FaultJob job) {
  auto* const values = shared_memory<unsigned>();
  values[threadIdx.x] = job.from[first_place()];
  job.to[first_place()] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void race_between_blocks_kernel(FaultJob job) {
  if (threadIdx.x == 0) *job.total += job.from[first_place()];
}

__global__ void depend_on_order_kernel(FaultJob job) {
  job.to[atomicAdd(job.total, 1u)] = static_cast<unsigned>(first_place());
}

// --- barriers and warps ----------------------------------------------------------------------

__global__ void diverge_at_a_barrier_kernel(FaultJob job) {
  if (threadIdx.x < 16) __syncthreads();
  job.to[first_place()] = 0;
}

__global__ void disagree_on_a_mask_kernel(FaultJob job) {
  const unsigned mask = threadIdx.x % warpSize == 0 ? 0x80000001u : kAllLanes;
  job.to[first_place()] = __shfl_sync(mask, job.from[first_place()], 0);
}

__global__ void wait_for_an_absent_lane_kernel(FaultJob job) {
  if (threadIdx.x % warpSize != 5) __syncwarp(kAllLanes);
  job.to[first_place()] = 0;
}

__global__ void name_a_mask_without_oneself_kernel(FaultJob job) {
  job.to[first_place()] = __ballot_sync(0x0000ffffu, 1);
}

__global__ void shuffle_from_outside_the_mask_kernel(FaultJob job) {
  if (threadIdx.x % warpSize < 16)
    job.to[first_place()] = __shfl_sync(0x0000ffffu, job.from[first_place()], 20);
}

__global__ void name_lanes_beyond_the_block_kernel(FaultJob job) {
  job.to[first_place()] = __ballot_sync(kAllLanes, 1);
}

// --- launchers -----------------------------------------------------------------------------

template <void (*kKernel)(FaultJob)>
int start(const Launch& launch, const FaultJob& job) {
  const unsigned threads = choose_threads(launch, kThreads);
  const unsigned blocks = choose_blocks(launch, job.count / threads, kMostBlocks);
  return launch_kernel("a kernel of the tests", launch, blocks, threads, threads * sizeof(unsigned),
                       kKernel, job);
}

// One block of a warp and a half.
int start_short_warp(const Launch& launch, const FaultJob& job) {
  return launch_kernel("a kernel of the tests", launch, 1, 48, 0,
                       name_lanes_beyond_the_block_kernel, job);
}

}  // namespace

extern const FaultLaunchers VS_DEVICE_TABLE(faults);
const FaultLaunchers VS_DEVICE_TABLE(faults) = {
    start<sum_kernel>,
    start<count_odd_kernel>,
    start<reverse_kernel>,
    start<extremes_kernel>,
    start<triple_kernel>,
    start<rotate_kernel>,
    start<read_past_the_end_kernel>,
    start<write_past_shared_memory_kernel>,
    start<load_misaligned_kernel>,
    start<read_unwritten_shared_memory_kernel>,
    start<miss_a_barrier_kernel>,
    start<race_between_blocks_kernel>,
    start<depend_on_order_kernel>,
    start<diverge_at_a_barrier_kernel>,
    start<disagree_on_a_mask_kernel>,
    start<wait_for_an_absent_lane_kernel>,
    start<name_a_mask_without_oneself_kernel>,
    start<shuffle_from_outside_the_mask_kernel>,
    start_short_warp,
};

}  // namespace veilsum
