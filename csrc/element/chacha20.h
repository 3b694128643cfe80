// The ChaCha20 block function of RFC 8439, generic in the word type: uint32_t makes one
// block, a vector of n words makes n blocks at once, lane by lane the same bits.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

struct ChaChaKey {
  std::uint32_t word[8];  // the key's 32 bytes as little-endian words
};

struct ChaChaNonce {
  std::uint32_t word[3];
};

// A CPU level with a better rotation passes its own.
struct PlainRotate {
  template <int kBits, class Word>
  VS_FN Word left(Word x) {
    return (x << kBits) | (x >> (32 - kBits));
  }
};

template <class Rotate, class Word>
VS_FN void chacha20_quarter_round(Word& a, Word& b, Word& c, Word& d) {
  a += b;
  d = Rotate::template left<16>(d ^ a);
  c += d;
  b = Rotate::template left<12>(b ^ c);
  a += b;
  d = Rotate::template left<8>(d ^ a);
  c += d;
  b = Rotate::template left<7>(b ^ c);
}

// Two of the twenty rounds: one on the columns, one on the diagonals.
template <class Rotate, class Word>
VS_FN void chacha20_double_round(Word x[16]) {
  chacha20_quarter_round<Rotate>(x[0], x[4], x[8], x[12]);
  chacha20_quarter_round<Rotate>(x[1], x[5], x[9], x[13]);
  chacha20_quarter_round<Rotate>(x[2], x[6], x[10], x[14]);
  chacha20_quarter_round<Rotate>(x[3], x[7], x[11], x[15]);
  chacha20_quarter_round<Rotate>(x[0], x[5], x[10], x[15]);
  chacha20_quarter_round<Rotate>(x[1], x[6], x[11], x[12]);
  chacha20_quarter_round<Rotate>(x[2], x[7], x[8], x[13]);
  chacha20_quarter_round<Rotate>(x[3], x[4], x[9], x[14]);
}

// out[0..15] become the words of the block(s) with the given counter(s).
template <class Rotate, class Word>
VS_FN void chacha20_block(const ChaChaKey& key, const ChaChaNonce& nonce, Word counter,
                          Word out[16]) {
  const Word zero = counter ^ counter;  // broadcasts a scalar into any word type
  // "expand 32-byte k"
  const Word state[16] = {zero + 0x61707865u,
                          zero + 0x3320646Eu,
                          zero + 0x79622D32u,
                          zero + 0x6B206574u,
                          zero + key.word[0],
                          zero + key.word[1],
                          zero + key.word[2],
                          zero + key.word[3],
                          zero + key.word[4],
                          zero + key.word[5],
                          zero + key.word[6],
                          zero + key.word[7],
                          counter,
                          zero + nonce.word[0],
                          zero + nonce.word[1],
                          zero + nonce.word[2]};
  for (int i = 0; i < 16; ++i) out[i] = state[i];
#if defined(__CUDA_ARCH__)
  // The first by itself, so that no word is moved to start a loop; three a turn, so that a turn is
  // still fetched from the smallest instruction cache.
  chacha20_double_round<Rotate>(out);
#pragma unroll 3
  for (int i = 1; i < 10; ++i) chacha20_double_round<Rotate>(out);
#else
  for (int i = 0; i < 10; ++i) chacha20_double_round<Rotate>(out);
#endif
  for (int i = 0; i < 16; ++i) out[i] += state[i];
}

}  // namespace veilsum
