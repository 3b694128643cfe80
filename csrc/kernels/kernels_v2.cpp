// x86-64-v2: SSE4.2.
#define VS_LANES 4
#define VS_LEVEL "v2"
#define VS_TABLE kV2Kernels
#include "kernels/table.inl"
