// GF(2^128) with polynomial x^128 + x^7 + x^2 + x + 1, for Shamir sharing. Coefficient i
// of the polynomial is bit i of the 128-bit integer.
//
// No tables and no branches on data: the time, and the cache lines touched, do not
// depend on the operands, which are keys. Sharing is a negligible part of a round, so
// bit-serial is fast enough.
#pragma once

#include <cstdint>

#include "element/annotate.h"

namespace veilsum {

struct Gf128 {
  std::uint64_t high;
  std::uint64_t low;
};

VS_FN Gf128 gf128_add(Gf128 a, Gf128 b) { return {a.high ^ b.high, a.low ^ b.low}; }

VS_FN Gf128 gf128_times_x(Gf128 a) {
  const std::uint64_t carry = 0 - (a.high >> 63);  // all ones if x^128 appears
  return {a.high << 1 | a.low >> 63, a.low << 1 ^ (carry & 0x87)};
}

VS_FN Gf128 gf128_multiply(Gf128 a, Gf128 b) {
  Gf128 product = {0, 0};
  for (int bit = 0; bit < 128; ++bit) {
    const std::uint64_t take = 0 - (b.low & 1);
    product = {product.high ^ (a.high & take), product.low ^ (a.low & take)};
    a = gf128_times_x(a);
    b = {b.high >> 1, b.low >> 1 | b.high << 63};
  }
  return product;
}

// a times a PUBLIC small element: the time depends on `index`, never on `a`.
VS_FN Gf128 gf128_multiply_by_index(Gf128 a, std::uint32_t index) {
  Gf128 product = {0, 0};
  for (; index != 0; index >>= 1) {
    if (index & 1) product = gf128_add(product, a);
    a = gf128_times_x(a);
  }
  return product;
}

// a^(2^128 - 2), which is 1/a, and 0 for 0.
VS_FN Gf128 gf128_invert(Gf128 a) {
  Gf128 result = {0, 1};
  Gf128 power = a;
  // The exponent has ones at bits 1 .. 127.
  for (int bit = 1; bit < 128; ++bit) {
    power = gf128_multiply(power, power);
    result = gf128_multiply(result, power);
  }
  return result;
}

VS_FN Gf128 gf128_load(const unsigned char* big_endian) {
  Gf128 a = {0, 0};
  for (int i = 0; i < 8; ++i) {
    a.high = a.high << 8 | big_endian[i];
    a.low = a.low << 8 | big_endian[8 + i];
  }
  return a;
}

VS_FN void gf128_store(unsigned char* big_endian, Gf128 a) {
  for (int i = 0; i < 8; ++i) {
    big_endian[i] = static_cast<unsigned char>(a.high >> (56 - 8 * i));
    big_endian[8 + i] = static_cast<unsigned char>(a.low >> (56 - 8 * i));
  }
}

}  // namespace veilsum
