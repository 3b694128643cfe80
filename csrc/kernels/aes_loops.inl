// AES-256 keystream by AES instructions, VS_AES_BLOCKS blocks per register. Included once per
// kind of instruction.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "element/aes.h"
#include "kernels/aes_kernels.h"
#include "kernels/wipe.inl"

namespace veilsum {
namespace {

typedef std::uint32_t Blocks __attribute__((vector_size(16 * VS_AES_BLOCKS)));

// Registers under way at once: an AES instruction takes several cycles, but one or two can
// start in each.
constexpr std::size_t kBatch = 8;
constexpr std::size_t kBatchBlocks = kBatch * VS_AES_BLOCKS;
static_assert(kBatchBlocks <= kBlockSlack * kAesSliceBlocks);

#if VS_AES_BLOCKS == 1
typedef __m128i Register;
VS_FN Blocks repeated(__m128i block) { return (Blocks)block; }
VS_FN Blocks shuffled(Blocks x, Blocks order) {
  return (Blocks)_mm_shuffle_epi8((Register)x, (Register)order);
}
VS_FN Blocks round_of(Blocks x, Blocks key) {
  return (Blocks)_mm_aesenc_si128((Register)x, (Register)key);
}
VS_FN Blocks last_round_of(Blocks x, Blocks key) {
  return (Blocks)_mm_aesenclast_si128((Register)x, (Register)key);
}
#elif VS_AES_BLOCKS == 2
typedef __m256i Register;
VS_FN Blocks repeated(__m128i block) { return (Blocks)_mm256_broadcastsi128_si256(block); }
VS_FN Blocks shuffled(Blocks x, Blocks order) {
  return (Blocks)_mm256_shuffle_epi8((Register)x, (Register)order);
}
VS_FN Blocks round_of(Blocks x, Blocks key) {
  return (Blocks)_mm256_aesenc_epi128((Register)x, (Register)key);
}
VS_FN Blocks last_round_of(Blocks x, Blocks key) {
  return (Blocks)_mm256_aesenclast_epi128((Register)x, (Register)key);
}
#else
typedef __m512i Register;
// The masked form of the same instruction: GCC 12 warns about its own header at the plain one.
VS_FN Blocks repeated(__m128i block) { return (Blocks)_mm512_maskz_broadcast_i32x4(0xFFFF, block); }
VS_FN Blocks shuffled(Blocks x, Blocks order) {
  return (Blocks)_mm512_shuffle_epi8((Register)x, (Register)order);
}
VS_FN Blocks round_of(Blocks x, Blocks key) {
  return (Blocks)_mm512_aesenc_epi128((Register)x, (Register)key);
}
VS_FN Blocks last_round_of(Blocks x, Blocks key) {
  return (Blocks)_mm512_aesenclast_epi128((Register)x, (Register)key);
}
#endif

// One number in the last word of each block, zeros elsewhere: the first block's number is
// `first`, the next one's one more.
VS_FN Blocks block_numbers(std::uint32_t first) {
  Blocks numbers{};
  for (std::uint32_t block = 0; block < VS_AES_BLOCKS; ++block)
    numbers[4 * block + 3] = first + block;
  return numbers;
}

struct RoundKeys {
  Blocks round[kAesRounds + 1];
};

VS_FN void load_round_keys(const unsigned char* schedule, RoundKeys& keys) {
  for (std::size_t round = 0; round <= kAesRounds; ++round) {
    __m128i key;
    __builtin_memcpy(&key, schedule + round * kAesBlockBytes, sizeof key);
    keys.round[round] = repeated(key);
  }
}

// `start` is the nonce, already added to the first round key.
VS_FN void write_batch(const RoundKeys& keys, Blocks start, Blocks numbers, unsigned char* out) {
  const Blocks byte_swap =
      repeated(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12));
  const Blocks next = repeated(_mm_setr_epi32(0, 0, 0, VS_AES_BLOCKS));
  Blocks x[kBatch];
  // GCC keeps an array in registers only where it unrolls completely.
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kBatch; ++i) {
    x[i] = start ^ shuffled(numbers, byte_swap);
    numbers += next;
  }
  for (int round = 1; round < kAesRounds; ++round)
#pragma GCC unroll 8
    for (std::size_t i = 0; i < kBatch; ++i) x[i] = round_of(x[i], keys.round[round]);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < kBatch; ++i) {
    x[i] = last_round_of(x[i], keys.round[kAesRounds]);
    __builtin_memcpy(out + i * sizeof(Blocks), &x[i], sizeof(Blocks));
  }
}

void write_aes256(const unsigned char* schedule, const KeystreamRange& range, unsigned char* out) {
  RoundKeys keys;
  load_round_keys(schedule, keys);
  const auto& nonce = range.nonce.word;
  Blocks start = keys.round[0] ^
                 repeated(_mm_setr_epi32(static_cast<int>(nonce[0]), static_cast<int>(nonce[1]),
                                         static_cast<int>(nonce[2]), 0));
  const std::size_t blocks = range.blocks * kAesSliceBlocks;
  const std::uint32_t first = range.first_block * kAesSliceBlocks;
  for (std::size_t block = 0; block < blocks; block += kBatchBlocks)
    write_batch(keys, start, block_numbers(first + static_cast<std::uint32_t>(block)),
                out + block * kAesBlockBytes);
  wipe_local(start);
  wipe_local(keys);
}

}  // namespace
}  // namespace veilsum
