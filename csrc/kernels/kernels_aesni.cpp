// AES-NI: one block per register.
#define VS_AES_BLOCKS 1
#include "kernels/aes_loops.inl"

namespace veilsum {
const AesKernels kAesNiKernels = {"aesni", write_aes256};
}
