// CUDA C++ kernels on the CPU: every CUDA thread is a fiber on one OS thread, blocks run in turn,
// barriers and warp operations are real. For tests of what kernels compute, not of how fast; what
// it cannot show is listed in docs/gpu.md.
//
// Kernels are compiled unchanged (cuda/device.h). Shared memory is dynamic only: its bytes come
// from the heap, block by block and of the exact size, so that sanitizers see its ends.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>

#define __global__ static
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define threadIdx (::vs_emu::current.thread->index)
#define blockIdx (::vs_emu::current.block)
#define blockDim (::vs_emu::current.block_shape)
#define gridDim (::vs_emu::current.grid_shape)
#define warpSize 32

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

namespace vs_emu {

// A fault of the kernel: it says which call, in which block.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Thread {
  uint3 index{};
  unsigned linear = 0;
};
struct Current {
  Thread* thread = nullptr;
  uint3 block{};
  dim3 block_shape, grid_shape;
  unsigned char* shared = nullptr;
};
extern Current current;

enum class WarpCall { shuffle, ballot, sync };
void block_barrier();
std::uint64_t warp_call(WarpCall call, std::uint32_t mask, std::uint64_t value, unsigned source,
                        const char* where);

// Runs a whole grid now. Throws Error.
void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& thread);

inline constexpr std::size_t kMostShared = 227 * 1024;  // of a block of an H100

// Appends work to a stream, whose turn comes when somebody waits for it. `what` is for errors.
void enqueue(void* stream, const char* what, std::function<void()> work);

// Looks for what must not be left in memory (settings.h).
void check_left(const void* memory, std::size_t bytes);

// Order of threads in blocks, of blocks, and of streams; 0 is ascending order.
std::uint64_t seed();

inline unsigned lane() { return current.thread->linear & 31; }

template <class T>
T shuffle(std::uint32_t mask, T value, unsigned source, const char* where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_call(WarpCall::shuffle, mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Relaxed, as on the device: the thread sanitizer draws no order from them.
template <class T, class Change>
T change_atomically(T* place, Change change) {
  T old, changed;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  do changed = change(old);
  while (
      !__atomic_compare_exchange(place, &old, &changed, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace vs_emu

inline void __syncthreads() { vs_emu::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  vs_emu::warp_call(vs_emu::WarpCall::sync, mask, 0, 0, "__syncwarp");
}
inline void __threadfence() {}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned segment = vs_emu::lane() & ~(width - 1u);
  return vs_emu::shuffle(mask, value, segment | (unsigned(source) & (width - 1u)), "__shfl_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = vs_emu::lane();
  const bool inside = (lane & (width - 1u)) + delta < unsigned(width);
  return vs_emu::shuffle(mask, value, inside ? lane + delta : lane, "__shfl_down_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = vs_emu::lane();
  const bool inside = (lane & (width - 1u)) >= delta;
  return vs_emu::shuffle(mask, value, inside ? lane - delta : lane, "__shfl_up_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned flip, int width = 32) {
  const unsigned lane = vs_emu::lane();
  const bool inside = ((lane ^ flip) & ~(width - 1u)) == (lane & ~(width - 1u));
  return vs_emu::shuffle(mask, value, inside ? lane ^ flip : lane, "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(
      vs_emu::warp_call(vs_emu::WarpCall::ballot, mask, predicate != 0, 0, "__ballot_sync"));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(unsigned(value)); }
inline int __clzll(long long value) { return std::countl_zero((unsigned long long)(value)); }
inline int __ffs(int value) { return value ? std::countr_zero(unsigned(value)) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(std::uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  shift &= 31;
  return shift ? high << shift | low >> (32 - shift) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  shift &= 31;
  return shift ? high << (32 - shift) | low >> shift : low;
}
template <class T>
T __ldg(const T* place) {
  return *place;
}
template <class T>
T atomicAdd(T* place, std::type_identity_t<T> value) {
  return vs_emu::change_atomically(place, [value](T old) { return T(old + value); });
}
template <class T>
T atomicMax(T* place, std::type_identity_t<T> value) {
  return vs_emu::change_atomically(place, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* place, std::type_identity_t<T> value) {
  return vs_emu::change_atomically(place, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* place, std::type_identity_t<T> value) {
  return vs_emu::change_atomically(place, [value](T old) { return T(old | value); });
}
template <class T>
T atomicExch(T* place, std::type_identity_t<T> value) {
  return vs_emu::change_atomically(place, [value](T) { return value; });
}
