#include "base/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#endif

namespace veilsum {

#if defined(__x86_64__)
namespace {

// __builtin_cpu_supports would need the compiler's own runtime library, which not
// every toolchain that builds wheels links.
struct Registers {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero, meaning no feature, if the CPU does not have the leaf.
Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

constexpr unsigned bits(auto... positions) { return ((1u << positions) | ...); }
constexpr bool has_all(unsigned value, unsigned wanted) { return (value & wanted) == wanted; }

// Register state the operating system saves on a context switch. A CPU may have
// AVX while its kernel does not preserve the registers.
std::uint64_t saved_register_state() {
  std::uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

constexpr unsigned kXmmYmm = 0x06;
constexpr unsigned kXmmYmmZmm = 0xe6;

}  // namespace

CpuLevel cpu_level() {
  const Registers basic = cpuid(1);
  const Registers extended = cpuid(7);
  const Registers amd = cpuid(0x80000001u);
  // ecx of leaf 1: SSE3 0, SSSE3 9, CX16 13, SSE4.1 19, SSE4.2 20, POPCNT 23
  if (!has_all(basic.ecx, bits(0, 9, 13, 19, 20, 23))) return CpuLevel::base;
  // ecx of leaf 1: FMA 12, MOVBE 22, OSXSAVE 27, AVX 28, F16C 29
  if (!has_all(basic.ecx, bits(12, 22, 27, 28, 29))) return CpuLevel::v2;
  const auto saved = static_cast<unsigned>(saved_register_state());
  // ebx of leaf 7: BMI1 3, AVX2 5, BMI2 8; LZCNT is ecx 5 of the AMD leaf
  if (!has_all(saved, kXmmYmm) || !has_all(extended.ebx, bits(3, 5, 8)) ||
      !has_all(amd.ecx, bits(5)))
    return CpuLevel::v2;
  // ebx of leaf 7: AVX-512 F 16, DQ 17, CD 28, BW 30, VL 31
  if (!has_all(saved, kXmmYmmZmm) || !has_all(extended.ebx, bits(16, 17, 28, 30, 31)))
    return CpuLevel::v3;
  return CpuLevel::v4;
}

CpuFeatures cpu_features() {
  // AES-NI is ecx 25 of leaf 1, VAES is ecx 9 of leaf 7. That their registers are saved is
  // part of the level that somebody who uses them asks for as well.
  return {has_all(cpuid(1).ecx, bits(25)), has_all(cpuid(7).ecx, bits(9))};
}
#else
CpuLevel cpu_level() { return CpuLevel::base; }
CpuFeatures cpu_features() { return {}; }
#endif

}  // namespace veilsum
