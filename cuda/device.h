// The one header of kernels. Kernel bodies are written once: nvcc compiles them for the device, a
// host compiler with VS_EMU for the emulator of tests/emu/, which runs them under sanitizers.
//
// Shared memory is dynamic: that of the emulator has exact ends. No kernel writes what another
// block reads.
#pragma once

#if defined(VS_EMU)
#include "emulator.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>

#include "device/launch.h"

// Name of a table of launchers: vs_cuda_<name> or vs_emu_<name>.
#if defined(VS_EMU)
#define VS_DEVICE_TABLE(name) vs_emu_##name
#else
#define VS_DEVICE_TABLE(name) vs_cuda_##name
#endif

#if defined(VS_EMU)
#define VS_UNROLL(times)
#else
#define VS_PRAGMA(text) _Pragma(#text)
#define VS_UNROLL(times) VS_PRAGMA(unroll times)
#endif

namespace veilsum {

// Measures a launch for as long as it lives.
class TimedLaunch {
 public:
  TimedLaunch(const char* kernel, const Launch& launch) : launch_(launch) {
    if (launch_.clock != nullptr) number_ = launch_.clock->begin(kernel, launch_.stream);
  }
  ~TimedLaunch() {
    if (launch_.clock != nullptr) launch_.clock->end(number_, launch_.stream);
  }
  TimedLaunch(const TimedLaunch&) = delete;
  TimedLaunch& operator=(const TimedLaunch&) = delete;

 private:
  const Launch& launch_;
  std::size_t number_ = 0;
};

#if defined(VS_EMU)

using Dim = dim3;
template <class T>
__device__ inline T* shared_memory() {
  return reinterpret_cast<T*>(::vs_emu::current.shared);
}

// Checks what the device would fault on.
template <class T>
__device__ inline T load_aligned(const void* place) {
  if (reinterpret_cast<std::uintptr_t>(place) % alignof(T) != 0)
    throw ::vs_emu::Error("a vector load is not aligned");
  return *static_cast<const T*>(place);
}
template <class T>
__device__ inline T load_global(const void* place) {
  return load_aligned<T>(place);
}
template <class T>
__device__ inline T* global_memory(T* place) {
  return place;
}
template <class T>
__device__ inline T load_once(const void* place) {
  return load_aligned<T>(place);
}
template <class T>
__device__ inline void store_aligned(void* place, const T& value) {
  if (reinterpret_cast<std::uintptr_t>(place) % alignof(T) != 0)
    throw ::vs_emu::Error("a vector store is not aligned");
  *static_cast<T*>(place) = value;
}

// A byte of the eight of `low` and `high` for each four bits of the selector: three bits are its
// number, and the fourth asks for eight copies of its highest bit instead (PTX: prmt).
__device__ inline std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high,
                                              std::uint32_t selector) {
  const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
  std::uint32_t result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const std::uint32_t wanted = selector >> 4 * i & 15;
    const auto byte = static_cast<std::uint32_t>(bytes >> 8 * (wanted & 7) & 255);
    result |= ((wanted & 8) == 0 ? byte : byte >> 7 != 0 ? 255u : 0u) << 8 * i;
  }
  return result;
}

template <class... Params, class... Args>
int launch_kernel(const char* name, const Launch& launch, unsigned blocks, unsigned threads,
                  std::size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  const TimedLaunch timed(name, launch);
  ::vs_emu::enqueue(launch.stream, name, [=] {
    ::vs_emu::run_grid(dim3(blocks), dim3(threads), shared_bytes, [&] { kernel(args...); });
  });
  return 0;
}

#else

template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char vs_shared_memory[];
  return reinterpret_cast<T*>(vs_shared_memory);
}

template <class T>
__device__ __forceinline__ T load_aligned(const void* place) {
  return *static_cast<const T*>(place);
}

// From an address that itself comes from memory. The compiler sees no more than that it may be any
// kind of memory, and would make a load that looks it up; addresses in tables are of global memory.
template <class T>
__device__ __forceinline__ T load_global(const void* place) {
  __builtin_assume(__isGlobal(place));
  return *static_cast<const T*>(place);
}

// The same of all that is read or written by way of a pointer.
template <class T>
__device__ __forceinline__ T* global_memory(T* place) {
  __builtin_assume(__isGlobal(place));
  return place;
}

// The same of what no other thread reads: caches give it up first. Unlike __ldcs the load is not
// volatile, because nothing writes there while a kernel runs: it may be moved and asked for early.
template <class T>
__device__ __forceinline__ T load_once(const void* place) {
  static_assert(sizeof(T) == 16 || sizeof(T) == 8 || sizeof(T) == 2 || sizeof(T) == 1);
  T value;
  if constexpr (sizeof(T) == 16) {
    uint4 words;
    asm("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(place));
    __builtin_memcpy(&value, &words, sizeof value);
  } else if constexpr (sizeof(T) == 8) {
    uint2 words;
    asm("ld.global.cs.v2.u32 {%0, %1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(place));
    __builtin_memcpy(&value, &words, sizeof value);
  } else if constexpr (sizeof(T) == 2) {
    std::uint16_t word;
    asm("ld.global.cs.u16 %0, [%1];" : "=h"(word) : "l"(place));
    __builtin_memcpy(&value, &word, sizeof value);
  } else {
    std::uint32_t word;
    asm("ld.global.cs.u8 %0, [%1];" : "=r"(word) : "l"(place));
    value = static_cast<T>(word);
  }
  return value;
}

template <class T>
__device__ __forceinline__ void store_aligned(void* place, const T& value) {
  *static_cast<T*>(place) = value;
}

__device__ __forceinline__ std::uint32_t permute_bytes(std::uint32_t low, std::uint32_t high,
                                                       std::uint32_t selector) {
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}

// Blocks get what every device gives without asking; more has to be asked for.
constexpr std::size_t kFreeSharedBytes = 48 * 1024;

template <class... Params, class... Args>
int launch_kernel(const char* name, const Launch& launch, unsigned blocks, unsigned threads,
                  std::size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  if (shared_bytes > kFreeSharedBytes) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return static_cast<int>(cudaGetLastError());
  }
  const TimedLaunch timed(name, launch);
  // clang-format off
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(launch.stream)>>>(args...);
  // clang-format on
  return static_cast<int>(cudaGetLastError());
}

#endif

// Blocks that `work` pieces need, one piece per block, bounded by the launch and by `most`.
inline unsigned choose_blocks(const Launch& launch, std::size_t work, std::size_t most) {
  std::size_t blocks = work < most ? work : most;
  if (launch.blocks != 0 && launch.blocks < blocks) blocks = launch.blocks;
  return static_cast<unsigned>(blocks == 0 ? 1 : blocks);
}

inline unsigned choose_threads(const Launch& launch, unsigned preferred) {
  return launch.threads != 0 ? launch.threads : preferred;
}

}  // namespace veilsum
