// Devices, memory and streams by way of the CUDA runtime. Host code here is plain C with
// internal linkage: it holds nothing of the C++ library, so the object links with any.
#include <cuda_runtime.h>

#include <cstdio>

#include "device/api.h"

namespace veilsum {
namespace {

// CUDA remembers the last error and would report it again to whoever asks next, possibly another
// library of the process, hence the reset.
int checked(cudaError_t status) {
  if (status != cudaSuccess) static_cast<void>(cudaGetLastError());
  return static_cast<int>(status);
}

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(void* event) { return static_cast<cudaEvent_t>(event); }

// Importing the module on a machine without a driver must work, so "none" is an answer and not an
// error.
int device_count(char* reason, std::size_t reason_size) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  static_cast<void>(cudaGetLastError());
  std::snprintf(reason, reason_size, "%s",
                status == cudaSuccess ? "no CUDA device" : cudaGetErrorString(status));
  return 0;
}

int facts(int device, DeviceFacts* found) {
  cudaDeviceProp properties;
  if (const int status = checked(cudaGetDeviceProperties(&properties, device))) return status;
  std::snprintf(found->name, sizeof found->name, "%s", properties.name);
  found->memory_bytes = properties.totalGlobalMem;
  found->processors = static_cast<unsigned>(properties.multiProcessorCount);
  found->shared_bytes = properties.sharedMemPerBlockOptin;
  return 0;
}

int use_device(int device, int* previous) {
  if (const int status = checked(cudaGetDevice(previous))) return status;
  return *previous == device ? 0 : checked(cudaSetDevice(device));
}

int synchronize_device() { return checked(cudaDeviceSynchronize()); }

int device_of(const void* memory, int* device) {
  cudaPointerAttributes attributes;
  if (const int status = checked(cudaPointerGetAttributes(&attributes, memory))) return status;
  if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
    return static_cast<int>(cudaErrorInvalidDevicePointer);
  *device = attributes.device;
  return 0;
}

// Work of other streams, such as the default one, is not waited for.
int create_stream(void** stream) {
  return checked(
      cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}
int destroy_stream(void* stream) { return checked(cudaStreamDestroy(stream_of(stream))); }
int synchronize(void* stream) { return checked(cudaStreamSynchronize(stream_of(stream))); }

int create_event(void** event) {
  return checked(
      cudaEventCreateWithFlags(reinterpret_cast<cudaEvent_t*>(event), cudaEventDisableTiming));
}
int destroy_event(void* event) { return checked(cudaEventDestroy(event_of(event))); }
int record(void* event, void* stream) {
  return checked(cudaEventRecord(event_of(event), stream_of(stream)));
}
int create_timed_event(void** event) {
  return checked(cudaEventCreate(reinterpret_cast<cudaEvent_t*>(event)));
}
int elapsed(void* begin, void* end, float* milliseconds) {
  return checked(cudaEventElapsedTime(milliseconds, event_of(begin), event_of(end)));
}
int wait(void* stream, void* event) {
  return checked(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0));
}
int synchronize_event(void* event) { return checked(cudaEventSynchronize(event_of(event))); }

int allocate(void** memory, std::size_t bytes, void* stream) {
  return checked(cudaMallocAsync(memory, bytes, stream_of(stream)));
}
int release(void* memory, void* stream) {
  return checked(cudaFreeAsync(memory, stream_of(stream)));
}
int allocate_pinned(void** memory, std::size_t bytes) {
  return checked(cudaHostAlloc(memory, bytes, cudaHostAllocPortable));
}
int release_pinned(void* memory) { return checked(cudaFreeHost(memory)); }

int to_device(void* to, const void* from, std::size_t bytes, void* stream) {
  return checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream)));
}
int to_host(void* to, const void* from, std::size_t bytes, void* stream) {
  return checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream)));
}
int copy(void* to, const void* from, std::size_t bytes, void* stream) {
  return checked(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(stream)));
}
int clear(void* memory, std::size_t bytes, void* stream) {
  return checked(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
}

void describe(int status, char* text, std::size_t size, int* out_of_memory) {
  const auto error = static_cast<cudaError_t>(status);
  std::snprintf(text, size, "%s: %s", cudaGetErrorName(error), cudaGetErrorString(error));
  *out_of_memory = error == cudaErrorMemoryAllocation;
}

constexpr RuntimeApi kRuntime = {
    device_count,
    facts,
    use_device,
    synchronize_device,
    device_of,
    create_stream,
    destroy_stream,
    synchronize,
    create_event,
    destroy_event,
    record,
    create_timed_event,
    elapsed,
    wait,
    synchronize_event,
    allocate,
    release,
    allocate_pinned,
    release_pinned,
    to_device,
    to_host,
    copy,
    clear,
    describe,
};

}  // namespace

extern const DecodeLaunchers vs_cuda_decode;
extern const EncodeLaunchers vs_cuda_encode;
extern const GramLaunchers vs_cuda_gram;
extern const MeanLaunchers vs_cuda_mean;
extern const OrderLaunchers vs_cuda_order;
extern const RotationLaunchers vs_cuda_rotation;
extern const StepLaunchers vs_cuda_step;
extern const TensorLaunchers vs_cuda_tensors;
extern const MaskLaunchers vs_cuda_masks;
extern const BenchLaunchers vs_cuda_bench;

extern const DeviceApi vs_cuda_api;
const DeviceApi vs_cuda_api = {.name = "cuda",
                               .runtime = &kRuntime,
                               .decode = &vs_cuda_decode,
                               .encode = &vs_cuda_encode,
                               .gram = &vs_cuda_gram,
                               .mean = &vs_cuda_mean,
                               .order = &vs_cuda_order,
                               .rotation = &vs_cuda_rotation,
                               .step = &vs_cuda_step,
                               .tensors = &vs_cuda_tensors,
                               .masks = &vs_cuda_masks,
                               .bench = &vs_cuda_bench};

}  // namespace veilsum
