// A CUDA status as an error text that names call, device and size.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdio>

namespace veilsum {

// Where the caller of the C interface wants its error text.
struct ErrorSink {
  int device;
  char* text;
  std::size_t size;
};

// True if the call failed. CUDA remembers the last error and would report it again to
// whoever asks next, possibly another library of the process, hence the reset.
static inline bool failed(cudaError_t status, const char* call, std::size_t bytes,
                          const ErrorSink& sink) {
  if (status == cudaSuccess) return false;
  std::snprintf(sink.text, sink.size, "%s on device %d (%zu bytes) failed: %s: %s", call,
                sink.device, bytes, cudaGetErrorName(status), cudaGetErrorString(status));
  static_cast<void>(cudaGetLastError());
  return true;
}

}  // namespace veilsum
