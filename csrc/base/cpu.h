// Which instruction-set levels this CPU and its operating system offer.
#pragma once

namespace veilsum {

// Weakest first; every level includes the ones below it.
enum class CpuLevel : int {
  base = 1,  // any x86-64 (SSE2), any aarch64 (NEON)
  v2 = 2,    // + SSE4.2, POPCNT
  v3 = 3,    // + AVX2, FMA, BMI, F16C, MOVBE
  v4 = 4,    // + AVX-512 F, BW, CD, DQ, VL
};

CpuLevel cpu_level();

// Instructions that are part of no level: a CPU of any level may lack them, so what uses them
// is a kernel object of its own.
struct CpuFeatures {
  bool aes;   // AES-NI, on registers of 128 bits
  bool vaes;  // the same on the widest registers of the level
};

CpuFeatures cpu_features();

}  // namespace veilsum
