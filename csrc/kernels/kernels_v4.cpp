// x86-64-v4: AVX-512.
#define VS_LANES 16
#define VS_LEVEL "v4"
#define VS_TABLE kV4Kernels
#include "kernels/table.inl"
