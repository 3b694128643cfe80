// Mask elements on a CUDA device, from the same element functions as on the CPU: `veilsum
// doctor` compares the two. One thread computes one element at a time from nothing but its
// number, so the launch shape cannot show in the result.
#include "base/cuda_api.h"
#include "check.h"
#include "element/bits.h"
#include "element/ring.h"

namespace veilsum {
namespace {

struct MaskJob {
  ChaChaKey key;
  std::uint32_t stream;
  unsigned bits;
  std::uint64_t first;
  std::size_t count;
};

__device__ std::uint64_t mask_element(const MaskJob& job, std::uint64_t element) {
  const std::uint64_t tile = element / kTileElements;
  const unsigned bit = static_cast<unsigned>(element % kTileElements) * job.bits;
  constexpr unsigned kBlockBits = 8 * kBlockBytes;
  const ChaChaNonce nonce = mask_nonce(job.stream, tile);
  const std::uint32_t counter = mask_counter(tile, job.bits) + bit / kBlockBits;
  // An element may straddle two blocks; the second half is read only then.
  std::uint32_t words[32] = {};
  chacha20_block<PlainRotate>(job.key, nonce, counter, words);
  if (bit % kBlockBits + job.bits > kBlockBits)
    chacha20_block<PlainRotate>(job.key, nonce, counter + 1, words + 16);
  return read_bits_unmasked(reinterpret_cast<const unsigned char*>(words), bit % kBlockBits,
                            job.bits) &
         low_bits(job.bits);
}

__global__ void mask_kernel(MaskJob job, std::uint64_t* words) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  for (std::size_t i = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < job.count;
       i += stride)
    words[i] = mask_element(job, job.first + i);
}

// Runs the kernel into `buffer` and copies the result out.
bool launch(const MaskJob& job, std::uint64_t* buffer, std::uint64_t* words,
            const ErrorSink& sink) {
  constexpr unsigned kThreads = 256;
  constexpr std::size_t kMaxBlocks = 4096;
  const std::size_t wanted = (job.count + kThreads - 1) / kThreads;
  const std::size_t bytes = job.count * sizeof *words;
  mask_kernel<<<static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks), kThreads>>>(
      job, buffer);
  return !failed(cudaGetLastError(), "mask kernel launch", bytes, sink) &&
         !failed(cudaMemcpy(words, buffer, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy", bytes,
                 sink);
}

bool run(const MaskJob& job, std::uint64_t* words, const ErrorSink& sink) {
  const std::size_t bytes = job.count * sizeof *words;
  std::uint64_t* buffer = nullptr;
  if (failed(cudaMalloc(&buffer, bytes), "cudaMalloc", bytes, sink)) return false;
  const bool computed = launch(job, buffer, words, sink);
  // Masks must not stay behind in memory that the next process is given.
  const bool wiped = !failed(cudaMemset(buffer, 0, bytes), "cudaMemset", bytes, sink) &&
                     !failed(cudaDeviceSynchronize(), "cudaDeviceSynchronize", bytes, sink);
  const bool freed = !failed(cudaFree(buffer), "cudaFree", bytes, sink);
  return computed && wiped && freed;
}

}  // namespace
}  // namespace veilsum

extern "C" int vs_cuda_mask_words(int device, const vs_cuda_mask_request* request,
                                  std::uint64_t* words, char* error, std::size_t error_size) {
  const veilsum::ErrorSink sink = {device, error, error_size};
  const veilsum::MaskJob job = {veilsum::load_key(request->key), request->stream, request->bits,
                                request->first, request->count};
  int previous = 0;
  if (veilsum::failed(cudaGetDevice(&previous), "cudaGetDevice", 0, sink) ||
      veilsum::failed(cudaSetDevice(device), "cudaSetDevice", 0, sink))
    return 1;
  const bool done = job.count == 0 || veilsum::run(job, words, sink);
  // The current device belongs to the thread, which may be another library's too.
  const bool restored = !veilsum::failed(cudaSetDevice(previous), "cudaSetDevice", 0, sink);
  return done && restored ? 0 : 1;
}
