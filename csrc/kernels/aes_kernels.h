// AES-256 keystream with AES instructions. These come beside the levels, not with them: a CPU
// of any level may lack them, so each kind is a kernel object of its own.
#pragma once

#include "kernels/ring_kernels.h"

namespace veilsum {

struct AesKernels {
  const char* name;
  WriteKeystream write;
};

#if defined(__x86_64__)
// Each is the only symbol of its object file (cmake/CheckKernelSymbols.cmake).
extern const AesKernels kAesNiKernels;    // 128 bits at a time
extern const AesKernels kVaes256Kernels;  // AES instructions on registers of 256 bits
extern const AesKernels kVaes512Kernels;
#endif

}  // namespace veilsum
