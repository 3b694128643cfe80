// What every x86-64 or aarch64 CPU runs: SSE2 or NEON.
#define VS_LANES 4
#define VS_LEVEL "base"
#define VS_TABLE kBaseKernels
#include "kernels/table.inl"
