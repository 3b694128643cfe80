// VAES on registers of 512 bits.
#define VS_AES_BLOCKS 4
#include "kernels/aes_loops.inl"

namespace veilsum {
const AesKernels kVaes512Kernels = {"vaes512", write_aes256};
}
