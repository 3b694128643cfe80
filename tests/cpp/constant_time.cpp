// Runs the loops that touch secrets with the secrets marked as undefined. Valgrind's memcheck
// then reports every branch, and every address, that depends on one.
//
// Compiled once per CPU level that valgrind can run, with that level's flags; VS_AES_BLOCKS
// chooses the AES instructions instead. The argument "leak" does what must not be done.
#include <valgrind/memcheck.h>

#include <cstdio>
#include <cstring>

#include "element/aes.h"
#include "element/gf128.h"
#include "element/ring.h"
#if defined(VS_AES_BLOCKS)
#include "kernels/aes_loops.inl"
#else
#include "kernels/ring_loops.inl"
#endif

namespace {

using namespace veilsum;

constexpr std::size_t kElements = 2 * kTileElements + 37;

alignas(64) unsigned char key[kMaskScratchBytes];
alignas(64) unsigned char schedule[kAesScheduleBytes];
alignas(64) unsigned char scratch[kMaskScratchBytes];
alignas(64) unsigned char out[kMaskScratchBytes];
std::uint64_t words[kElements];

void make_secret(void* data, std::size_t size) {
  std::memset(data, 0x5A, size);
  (void)VALGRIND_MAKE_MEM_UNDEFINED(data, size);
}

// What went over the wire is public, and so is whether it was the expected one.
void publish(void* data, std::size_t size) { (void)VALGRIND_MAKE_MEM_DEFINED(data, size); }

#if defined(VS_AES_BLOCKS)
void run() {
  write_aes256(schedule, {{{1, 2, 3}}, 7, 11}, out);
  publish(out, sizeof out);
}
#else
template <class Word>
void mask_and_pack(const MaskTerms& terms, unsigned bits) {
  auto* const sums = reinterpret_cast<Word*>(words);
  make_secret(words, sizeof words);
  add_masks(terms, {1, bits, 509, kElements}, scratch, sums);
  pack(sums, kElements, bits, out);
  const unsigned char* const both[2] = {out, out};
  add_packed({both, 2, bits}, kElements, sums);
  publish(words, sizeof words);
}

void shamir() {
  Gf128 secret = {0x0123456789ABCDEF, 42};
  make_secret(&secret, sizeof secret);
  Gf128 share = gf128_invert(gf128_multiply(secret, gf128_multiply_by_index(secret, 200)));
  publish(&share, sizeof share);
}

void run() {
  const MaskTerm chacha[2] = {{key, false}, {key, true}};
  const MaskTerm aes[2] = {{schedule, false}, {schedule, true}};
  const unsigned widths[] = {1, 8, 16, 22, 32, 33, 58, 64};
  for (const unsigned bits : widths) {
    mask_and_pack<std::uint64_t>({write_chacha20, chacha, 2}, bits);
    mask_and_pack<std::uint64_t>({write_aes256, aes, 2}, bits);
    if (bits > 32) continue;
    mask_and_pack<std::uint32_t>({write_chacha20, chacha, 2}, bits);
    mask_and_pack<std::uint32_t>({write_aes256, aes, 2}, bits);
  }
  shamir();
}
#endif

// As a table look-up of AES would do it.
void leak() {
  static unsigned char table[256];
  volatile unsigned char* const at = table;
  out[0] = at[schedule[17]];
}

}  // namespace

int main(int count, char** arguments) {
  make_secret(key, kAesKeyBytes);
  aes_expand_key(key, schedule);
  if (count > 1 && std::strcmp(arguments[1], "leak") == 0) leak();
  run();
  std::puts(RUNNING_ON_VALGRIND ? "done under valgrind" : "done");
}
