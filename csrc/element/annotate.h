// VS_FN marks a function that CPU kernels and CUDA kernels both compile.
//
// It has internal linkage on purpose. Every instruction-set level compiles these
// headers with its own flags; a plain `inline` would emit a weak symbol in each
// object, the linker would keep one of them, and the base level could end up
// running AVX-512 instructions on a machine that has none. Always-inline also
// means that templates, which `static` cannot help, leave no symbol behind.
#pragma once

#if defined(__CUDACC__)
#define VS_FN static __host__ __device__ __forceinline__
#else
#define VS_FN static inline __attribute__((always_inline))
#endif
