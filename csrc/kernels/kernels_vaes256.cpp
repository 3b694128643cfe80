// VAES on registers of 256 bits, for CPUs without AVX-512.
#define VS_AES_BLOCKS 2
#include "kernels/aes_loops.inl"

namespace veilsum {
const AesKernels kVaes256Kernels = {"vaes256", write_aes256};
}
