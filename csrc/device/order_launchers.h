// Kernels of the rules that look at each coordinate alone, and of the rows that they look at.
//
// All pointers are to device memory. A row is one update's values of a window of whole tiles of
// group 1, floats or, if it is wide, doubles, the last tile padded with zeros; or a mean of some.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/launch.h"
#include "device/mean_launchers.h"
#include "element/order.h"

namespace veilsum {

// An update in a row that is a mean.
struct MixTerm {
  const unsigned char* values;
  std::uint64_t weight;
};

struct MixRow {
  unsigned char* values;  // where the row goes
  std::uint32_t first_term;
  std::uint32_t terms;
  std::uint64_t total_weight;
  double reciprocal;  // of the total weight, rounded once
};

// Rows that are means of updates: sums of round(value * 2^s) * weight, s for each row and tile,
// over the total weight, rounded once.
struct RowMeans {
  bool wide;
  std::size_t tiles;
  std::size_t rows;
  const MixRow* row;
  const MixTerm* term;
  const int* exponent;  // s: tile by tile, one per row
};

enum class ColumnRule : std::uint8_t { median, middle, nearest };

// What csrc/kernels/order_kernels.h says of each rule, for every column of a window.
struct ColumnOrder {
  ColumnRule rule;
  bool wide;
  std::size_t tiles;
  std::size_t rows;
  const unsigned char* const* row;
  std::size_t first;         // of `middle`: rank from which values are kept
  std::size_t kept;          // how many
  double reciprocal;         // of `kept`, rounded once
  const MeanFormat* format;  // of means, one per 64 columns
  void* scratch;             // null: shared memory is enough
  void* results;             // floats, or doubles if `wide`
};

// Up to so many rows are sorted in registers.
inline constexpr std::size_t kRegisterRows = 32;

// Rows that the sorted columns of a piece take.
VS_FN constexpr std::size_t sorted_rows(std::size_t rows) {
  return order_room(rows < 4 ? 4 : rows);
}

VS_FN constexpr std::size_t sorted_piece_bytes(std::size_t rows, bool wide) {
  return sorted_rows(rows) * kOrderPiece * (wide ? sizeof(double) : sizeof(float));
}

// Shared memory of a block beside a piece: a double per warp.
inline constexpr std::size_t kOrderSharedBytes = 64;

// Most blocks that share scratch, of which each has sorted_piece_bytes().
inline constexpr std::size_t kScratchBlocks = 256;

struct OrderLaunchers {
  int (*mean_rows)(const Launch& launch, const RowMeans& means);
  int (*order_columns)(const Launch& launch, const ColumnOrder& order);
};

}  // namespace veilsum
