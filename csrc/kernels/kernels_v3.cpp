// x86-64-v3: AVX2.
#define VS_LANES 8
#define VS_LEVEL "v3"
#define VS_TABLE kV3Kernels
#include "kernels/table.inl"
