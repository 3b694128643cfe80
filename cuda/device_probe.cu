// Which CUDA devices there are, if any. Importing the module on a machine without a driver
// must work, so "none" is an answer and not an error.
#include <cstdio>

#include "base/cuda_api.h"
#include "check.h"

extern "C" int vs_cuda_device_count(char* reason, std::size_t reason_size) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  static_cast<void>(cudaGetLastError());
  std::snprintf(reason, reason_size, "%s",
                status == cudaSuccess ? "no CUDA device" : cudaGetErrorString(status));
  return 0;
}

extern "C" int vs_cuda_device_name(int device, char* name, std::size_t name_size) {
  cudaDeviceProp properties;
  const veilsum::ErrorSink sink = {device, name, name_size};
  if (veilsum::failed(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties", 0,
                      sink))
    return 1;
  std::snprintf(name, name_size, "%s", properties.name);
  return 0;
}
