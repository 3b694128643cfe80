// What the sixteen codes of each 4-bit codec stand for, before the scale.
#pragma once

#include <cstdint>

namespace veilsum {

inline constexpr unsigned kTableCodes = 16;

struct CodeTable {
  float value[kTableCodes];
  std::uint8_t zero;  // the code of 0
  // Codes by magnitude: the code of 0 has rank 0 and no other has.
  std::uint8_t rank[kTableCodes];
  float magnitude[kTableCodes];  // by rank
  std::uint8_t most;             // the largest rank of a code that exists
  float smallest;                // magnitude but 0

  constexpr float largest() const { return magnitude[most]; }
};

// Two's complement; -8 has no opposite and does not exist.
inline constexpr CodeTable kInt4Table = {
    .value = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1},
    .zero = 0,
    .rank = {0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6, 5, 4, 3, 2, 1},
    .magnitude = {0, 1, 2, 3, 4, 5, 6, 7, 8},
    .most = 7,
    .smallest = 1};

// 4-bit NormalFloat: quantiles of the normal distribution, scaled to [-1, 1] (Dettmers et al.
// 2023, "QLoRA", appendix E).
inline constexpr CodeTable kNf4Table = {
    .value = {-1.0F, -0.6961928009986877F, -0.5250730514526367F, -0.39491748809814453F,
              -0.28444138169288635F, -0.18477343022823334F, -0.09105003625154495F, 0.0F,
              0.07958029955625534F, 0.16093020141124725F, 0.24611230194568634F,
              0.33791524171829224F, 0.44070982933044434F, 0.5626170039176941F, 0.7229568362236023F,
              1.0F},
    .zero = 7,
    .rank = {14, 12, 10, 8, 6, 4, 2, 0, 1, 3, 5, 7, 9, 11, 13, 14},
    .magnitude = {0, 0.07958029955625534F, 0.09105003625154495F, 0.16093020141124725F,
                  0.18477343022823334F, 0.24611230194568634F, 0.28444138169288635F,
                  0.33791524171829224F, 0.39491748809814453F, 0.44070982933044434F,
                  0.5250730514526367F, 0.5626170039176941F, 0.6961928009986877F,
                  0.7229568362236023F, 1.0F},
    .most = 14,
    .smallest = 0.07958029955625534F};

// E2M1 (OCP Microscaling Formats, 2023): sign, two bits of exponent, one of mantissa. There is a
// -0, which a block without a scale does not have either.
inline constexpr CodeTable kFp4Table = {
    .value = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6, -0.0F, -0.5F, -1, -1.5F, -2, -3, -4, -6},
    .zero = 0,
    .rank = {0, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8},
    .magnitude = {0, 0, 0.5F, 1, 1.5F, 2, 3, 4, 6},
    .most = 8,
    .smallest = 0.5F};

}  // namespace veilsum
