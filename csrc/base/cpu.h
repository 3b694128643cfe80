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

}  // namespace veilsum
