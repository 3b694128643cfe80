// The rate of additions, exclusive ors and rotations: the steps of ChaCha20.
#include "device.h"
#include "device/bench_launchers.h"
#include "element/bits.h"

namespace veilsum {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kChains = 4;
constexpr std::size_t kMostBlocks = 1 << 20;

__device__ __forceinline__ std::uint32_t rotate(std::uint32_t word) {
  return __funnelshift_l(word, word, 7);
}

__global__ void __launch_bounds__(kThreads) mix_kernel(MixJob job) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; at < job.threads; at += stride) {
    std::uint32_t words[kChains];
    for (unsigned i = 0; i < kChains; ++i) words[i] = static_cast<std::uint32_t>(at) + i;
    VS_UNROLL(16)
    for (unsigned turn = 0; turn < job.turns; ++turn) {
      VS_UNROLL(4)
      for (unsigned i = 0; i < kChains; ++i) words[i] = rotate((words[i] + turn) ^ 0x9E3779B9u);
    }
    job.results[at] = words[0] ^ words[1] ^ words[2] ^ words[3];
  }
}

int mix(const Launch& launch, const MixJob& job) {
  const unsigned threads = choose_threads(launch, kThreads);
  const unsigned blocks = choose_blocks(launch, (job.threads + threads - 1) / threads, kMostBlocks);
  return launch_kernel("mix_kernel", launch, blocks, threads, 0, mix_kernel, job);
}

}  // namespace

extern const BenchLaunchers VS_DEVICE_TABLE(bench);
const BenchLaunchers VS_DEVICE_TABLE(bench) = {mix};

}  // namespace veilsum
