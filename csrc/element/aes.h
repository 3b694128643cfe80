// AES-256 (FIPS 197) in bit planes: no tables and no branches, so that neither the time nor
// the cache lines touched depend on key or data, on any CPU.
//
// Four blocks are 512 bits: eight 64-bit words, one per bit of a byte. Bit
// 16 * row + 4 * column + block of plane k is bit k of that byte of that block; rows and
// columns are those of the AES state. The S-box becomes logic on whole words, ShiftRows and
// MixColumns become shifts. Generic in the word type: uint64_t makes four blocks, a vector of
// n such words 4n, lane by lane the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

inline constexpr int kAesRounds = 14;
inline constexpr std::size_t kAesBlockBytes = 16;
inline constexpr std::size_t kAesKeyBytes = 32;
inline constexpr int kAesSliceBlocks = 4;  // blocks per 64 bits of a word
// The round keys one after the other, as FIPS 197 numbers their bytes.
inline constexpr std::size_t kAesScheduleBytes = kAesBlockBytes * (kAesRounds + 1);

// --- the S-box -------------------------------------------------------------------------
// As the circuit of Boyar and Peralta, "A new combinational logic minimization technique with
// applications to cryptology" (SEA 2010): 32 ANDs and 83 XORs, in three layers. Names and
// numbers of the signals are theirs; x[0] and s[0] are the highest bits of the byte.

// The linear layer in front: y[1] to y[21].
template <class Word>
VS_FN void aes_sbox_enter(const Word x[8], Word y[22]) {
  const Word x12 = x[1] ^ x[2];
  y[14] = x[3] ^ x[5];
  y[13] = x[0] ^ x[6];
  y[9] = x[0] ^ x[3];
  y[8] = x[0] ^ x[5];
  y[1] = x12 ^ x[7];
  y[4] = y[1] ^ x[3];
  y[12] = y[13] ^ y[14];
  y[2] = y[1] ^ x[0];
  y[5] = y[1] ^ x[6];
  y[3] = y[5] ^ y[8];
  const Word t1 = x[4] ^ y[12];
  y[15] = t1 ^ x[5];
  y[20] = t1 ^ x[1];
  y[6] = y[15] ^ x[7];
  y[10] = y[15] ^ x12;
  y[11] = y[20] ^ y[9];
  y[7] = x[7] ^ y[11];
  y[17] = y[10] ^ y[11];
  y[19] = y[10] ^ y[8];
  y[16] = x12 ^ y[11];
  y[21] = y[13] ^ y[16];
  y[18] = x[0] ^ y[16];
}

// What is inverted in GF(2^4): t[21] to t[24] become v[0] to v[3].
template <class Word>
VS_FN void aes_sbox_norm(const Word y[22], Word x7, Word v[4]) {
  const Word t2 = y[12] & y[15];
  const Word t7 = y[13] & y[16];
  const Word t12 = y[9] & y[11];
  const Word t14 = (y[14] & y[17]) ^ t12;
  const Word t16 = (y[8] & y[10]) ^ t12;
  v[0] = (y[3] & y[6]) ^ t2 ^ t14 ^ y[20];
  v[1] = (y[4] & x7) ^ t2 ^ t16 ^ y[19];
  v[2] = (y[5] & y[1]) ^ t7 ^ t14 ^ y[21];
  v[3] = (y[2] & y[7]) ^ t7 ^ t16 ^ y[18];
}

// The inverse, and the sums of its parts: t[29], t[33], t[37], t[40] to t[45].
template <class Word>
VS_FN void aes_sbox_invert(const Word v[4], Word t[46]) {
  const Word t25 = v[0] ^ v[1];
  const Word t26 = v[0] & v[2];
  const Word t27 = v[3] ^ t26;
  t[29] = (t25 & t27) ^ v[1];
  const Word t30 = v[2] ^ v[3];
  t[33] = ((v[1] ^ t26) & t30) ^ v[3];
  const Word t36 = v[3] & (t27 ^ t[33]);
  t[37] = t36 ^ v[2] ^ t[33];
  t[40] = t25 ^ (t[29] & (t27 ^ t36));
  t[41] = t[40] ^ t[37];
  t[42] = t[29] ^ t[33];
  t[43] = t[29] ^ t[40];
  t[44] = t[33] ^ t[37];
  t[45] = t[42] ^ t[41];
}

// Back to GF(2^8): z[0] to z[17].
template <class Word>
VS_FN void aes_sbox_expand(const Word y[22], Word x7, const Word t[46], Word z[18]) {
  z[0] = t[44] & y[15];
  z[1] = t[37] & y[6];
  z[2] = t[33] & x7;
  z[3] = t[43] & y[16];
  z[4] = t[40] & y[1];
  z[5] = t[29] & y[7];
  z[6] = t[42] & y[11];
  z[7] = t[45] & y[17];
  z[8] = t[41] & y[10];
  z[9] = t[44] & y[12];
  z[10] = t[37] & y[3];
  z[11] = t[33] & y[4];
  z[12] = t[43] & y[13];
  z[13] = t[40] & y[5];
  z[14] = t[29] & y[2];
  z[15] = t[42] & y[9];
  z[16] = t[45] & y[14];
  z[17] = t[41] & y[8];
}

// The linear layer behind, with the S-box's affine map.
template <class Word>
VS_FN void aes_sbox_leave(const Word z[18], Word s[8]) {
  const Word t46 = z[15] ^ z[16];
  const Word t48 = z[5] ^ z[13];
  const Word t49 = z[9] ^ z[10];
  const Word t53 = z[0] ^ z[3];
  const Word t54 = z[6] ^ z[7];
  const Word t57 = z[2] ^ z[12] ^ t53;
  const Word t58 = z[4] ^ t46;
  const Word t59 = z[3] ^ t54;
  const Word t62 = z[7] ^ z[8] ^ t58;
  const Word t63 = t49 ^ t58;
  const Word t64 = z[4] ^ t59;
  const Word t65 = z[14] ^ t57 ^ t62;
  const Word t66 = z[1] ^ t63;
  s[0] = t59 ^ t63;
  s[3] = t53 ^ t66;
  s[4] = z[2] ^ z[5] ^ t66;
  s[5] = z[10] ^ z[11] ^ t65;
  s[1] = ~(t64 ^ s[3]);
  s[2] = ~(z[16] ^ z[17] ^ t64 ^ t65);
  s[6] = ~(z[12] ^ t48 ^ t62);
  s[7] = ~(t48 ^ t46 ^ t57);
}

// SubBytes on every byte whose bits the planes hold; plane[0] has the lowest bits.
template <class Word>
VS_FN void aes_sub_bytes(Word plane[8]) {
  Word x[8], y[22], v[4], t[46], z[18], s[8];
  for (int k = 0; k < 8; ++k) x[k] = plane[7 - k];
  aes_sbox_enter(x, y);
  aes_sbox_norm(y, x[7], v);
  aes_sbox_invert(v, t);
  aes_sbox_expand(y, x[7], t, z);
  aes_sbox_leave(z, s);
  for (int k = 0; k < 8; ++k) plane[k] = s[7 - k];
}

// --- the key schedule --------------------------------------------------------------------

VS_FN std::uint32_t aes_sub_word(std::uint32_t word) {
  std::uint32_t plane[8];
  for (int k = 0; k < 8; ++k) plane[k] = word >> k & 0x01010101u;
  aes_sub_bytes(plane);
  std::uint32_t result = 0;
  for (int k = 0; k < 8; ++k) result |= (plane[k] & 0x01010101u) << k;
  return result;
}

VS_FN std::uint32_t aes_load_word(const unsigned char* bytes) {
  return std::uint32_t{bytes[0]} | std::uint32_t{bytes[1]} << 8 | std::uint32_t{bytes[2]} << 16 |
         std::uint32_t{bytes[3]} << 24;
}

// KeyExpansion of FIPS 197, section 5.2, for eight key words; words are little-endian here, so
// that RotWord turns the other way and the round constant is in the lowest byte. Earlier words are
// read back from the schedule, which its owner wipes: eight words in a row are the whole key, and
// a copy of them would stay behind on the stack.
VS_FN void aes_expand_key(const unsigned char key[kAesKeyBytes],
                          unsigned char schedule[kAesScheduleBytes]) {
  for (std::size_t i = 0; i < kAesKeyBytes; ++i) schedule[i] = key[i];
  for (int i = 8; i < 4 * (kAesRounds + 1); ++i) {
    std::uint32_t last = aes_load_word(schedule + 4 * (i - 1));
    if (i % 8 == 0) last = aes_sub_word(last >> 8 | last << 24) ^ (1u << (i / 8 - 1));
    if (i % 8 == 4) last = aes_sub_word(last);
    const std::uint32_t word = aes_load_word(schedule + 4 * (i - 8)) ^ last;
    for (int byte = 0; byte < 4; ++byte)
      schedule[4 * i + byte] = static_cast<unsigned char>(word >> (8 * byte));
  }
}

// --- bytes to planes and back ---------------------------------------------------------------

template <class Word>
VS_FN void aes_swap_bits(Word& a, Word& b, int distance, std::uint64_t mask) {
  const Word differ = ((a >> distance) ^ b) & mask;
  b ^= differ;
  a ^= differ << distance;
}

// Bit i of each byte of word w <-> bit w of the same byte of word i.
template <class Word>
VS_FN void aes_transpose(Word word[8]) {
  for (int i = 0; i < 8; i += 2) aes_swap_bits(word[i], word[i + 1], 1, 0x5555555555555555u);
  for (int i = 0; i < 8; i += 4)
    for (int j = i; j < i + 2; ++j) aes_swap_bits(word[j], word[j + 2], 2, 0x3333333333333333u);
  for (int i = 0; i < 4; ++i) aes_swap_bits(word[i], word[i + 4], 4, 0x0F0F0F0F0F0F0F0Fu);
}

// The four bytes of a column go to every other byte of a word, and back.
template <class Word>
VS_FN Word aes_spread(Word column) {
  const Word halves = (column | column << 16) & 0x0000FFFF0000FFFFu;
  return (halves | halves << 8) & 0x00FF00FF00FF00FFu;
}

template <class Word>
VS_FN Word aes_gather(Word word) {
  const Word bytes = word & 0x00FF00FF00FF00FFu;
  const Word halves = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFu;
  return (halves | halves >> 16) & 0x00000000FFFFFFFFu;
}

// column[4 * block + c]: column c of a block in the lower half of a word. The result is the
// planes of the four blocks.
template <class Word>
VS_FN void aes_slice(const Word column[16], Word plane[8]) {
  for (int block = 0; block < kAesSliceBlocks; ++block)
    for (int c = 0; c < 2; ++c)
      plane[block + 4 * c] =
          aes_spread(column[4 * block + c]) | aes_spread(column[4 * block + c + 2]) << 8;
  aes_transpose(plane);
}

// half[2 * block] and half[2 * block + 1] become the two halves of a block, little-endian.
// `plane` is used up.
template <class Word>
VS_FN void aes_unslice(Word plane[8], Word half[8]) {
  aes_transpose(plane);
  for (int block = 0; block < kAesSliceBlocks; ++block) {
    const Word even = plane[block];     // columns 0 and 2
    const Word odd = plane[block + 4];  // columns 1 and 3
    half[2 * block] = aes_gather(even) | aes_gather(odd) << 32;
    half[2 * block + 1] = aes_gather(even >> 8) | aes_gather(odd >> 8) << 32;
  }
}

// --- the rounds ----------------------------------------------------------------------------

struct AesRoundPlanes {
  std::uint64_t plane[kAesRounds + 1][8];
};

// Every block has the same round keys, so one word of planes serves all lanes.
VS_FN void aes_slice_schedule(const unsigned char schedule[kAesScheduleBytes],
                              AesRoundPlanes& keys) {
  for (int round = 0; round <= kAesRounds; ++round) {
    std::uint64_t column[16];
    for (int i = 0; i < 16; ++i)
      column[i] = aes_load_word(schedule + kAesBlockBytes * static_cast<unsigned>(round) +
                                static_cast<unsigned>(i % 4 * 4));
    aes_slice(column, keys.plane[round]);
  }
}

// Row r moves r columns towards the first; the two parts are those that do and do not wrap.
template <class Word>
VS_FN Word aes_shift_rows(Word x) {
  return (x & 0x000000000000FFFFu) | (x >> 4 & 0x000000000FFF0000u) |
         (x << 12 & 0x00000000F0000000u) | (x >> 8 & 0x000000FF00000000u) |
         (x << 8 & 0x0000FF0000000000u) | (x >> 12 & 0x000F000000000000u) |
         (x << 4 & 0xFFF0000000000000u);
}

// Row r of the result is row r + rows of x.
template <int rows, class Word>
VS_FN Word aes_rotate_rows(Word x) {
  return x >> (16 * rows) | x << (64 - 16 * rows);
}

// Row r becomes 2 (a[r] + a[r+1]) + a[r+1] + a[r+2] + a[r+3], in GF(2^8) mod 0x11B.
template <class Word>
VS_FN void aes_mix_columns(Word plane[8]) {
  Word next[8], sum[8];
  for (int k = 0; k < 8; ++k) {
    next[k] = aes_rotate_rows<1>(plane[k]);
    sum[k] = plane[k] ^ next[k];
  }
  const Word carry = sum[7];
  for (int k = 0; k < 8; ++k) plane[k] = next[k] ^ aes_rotate_rows<2>(sum[k]);
  for (int k = 1; k < 8; ++k) plane[k] ^= sum[k - 1];
  plane[0] ^= carry;
  plane[1] ^= carry;
  plane[3] ^= carry;
  plane[4] ^= carry;
}

template <class Word>
VS_FN void aes_encrypt_planes(const AesRoundPlanes& keys, Word plane[8]) {
  for (int k = 0; k < 8; ++k) plane[k] ^= keys.plane[0][k];
  for (int round = 1; round <= kAesRounds; ++round) {
    aes_sub_bytes(plane);
    for (int k = 0; k < 8; ++k) plane[k] = aes_shift_rows(plane[k]);
    if (round < kAesRounds) aes_mix_columns(plane);
    for (int k = 0; k < 8; ++k) plane[k] ^= keys.plane[round][k];
  }
}

// --- counter mode ------------------------------------------------------------------------------

// The counter is the last column of its block, big-endian.
template <class Word>
VS_FN Word aes_big_endian(Word counter) {
  return (counter << 24 & 0xFF000000u) | (counter << 8 & 0x00FF0000u) |
         (counter >> 8 & 0x0000FF00u) | (counter >> 24 & 0x000000FFu);
}

// Blocks 4 * number to 4 * number + 3 under a nonce: 64 bytes of keystream in each lane, as
// little-endian words.
template <class Word>
VS_FN void aes_keystream(const AesRoundPlanes& keys, const std::uint32_t nonce[3], Word number,
                         Word half[8]) {
  Word column[4 * kAesSliceBlocks], plane[8];
  for (int block = 0; block < kAesSliceBlocks; ++block) {
    for (int c = 0; c < 3; ++c) column[4 * block + c] = Word{} + nonce[c];
    column[4 * block + 3] = aes_big_endian(number * kAesSliceBlocks + static_cast<unsigned>(block));
  }
  aes_slice(column, plane);
  aes_encrypt_planes(keys, plane);
  aes_unslice(plane, half);
}

}  // namespace veilsum
