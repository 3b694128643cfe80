// The loops over the columns of several updates, as one CPU level provides them: order
// statistics of each coordinate, and inner products. Nothing is checked here: arguments were
// checked one layer up. Every level gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element/annotate.h"
#include "element/order.h"
#include "kernels/codec_kernels.h"

namespace veilsum {

// Columns of which medians are taken at once. Long runs of each row are read ahead best, but the
// sorted rows of all columns must stay in the second-level cache.
VS_FN constexpr std::size_t median_piece(std::size_t rows, std::size_t width) {
  std::size_t columns = 1024;
  while (columns > kOrderPiece && order_room(rows) * columns * width > 512 * 1024) columns /= 2;
  return columns;
}

// Scratch of an order kernel for values of `width` bytes, 64-byte aligned: two sorted halves, which
// take as much as all rows if there are three or more, and more than one or two do.
VS_FN constexpr std::size_t order_scratch_bytes(std::size_t rows, std::size_t width) {
  return 2 * order_room((rows + 1) / 2) * median_piece(rows, width) * width;
}

// Which of a column's values are summed.
struct KeptRanks {
  std::size_t rows;
  std::size_t first;  // rank from which values are kept; not looked at by sum_nearest
  std::size_t count;  // how many, at least 1
};

// A row is one update's values of a tile, at any address; no value is NaN. Zeros have no sign:
// what comes out is never -0. At least one row.
using Row = const unsigned char*;

template <class Value>
struct ColumnKernels {
  // The middle value, or the exact mean of the middle two rounded once. Up to median_piece()
  // columns; the sums below up to kOrderPiece.
  void (*median)(const Row* rows, std::size_t row_count, std::size_t count, void* scratch,
                 Value* medians);
  // sums[i] = sum of round(value * 2^s) over the values of ranks first .. first + count - 1, where
  // s, which is returned, follows from the largest of all values kept in the piece alone: what is
  // left out has no say in how exact the rest is. No sum can overflow.
  int (*sum_middle)(const Row* rows, const KeptRanks& kept, std::size_t count, void* scratch,
                    std::uint64_t* sums);
  // The same over the kept.count values nearest to the median. Distances are rounded to double,
  // and of two equally far the smaller value is kept.
  int (*sum_nearest)(const Row* rows, const KeptRanks& kept, std::size_t count, void* scratch,
                     std::uint64_t* sums);
};

// Coordinates whose inner products are taken at once: a row of them fits the first-level cache,
// some hundred rows the second.
inline constexpr std::size_t kGramLeaf = 512;
// From one packed row to the next: a line more, so that rows do not share the cache's sets.
inline constexpr std::size_t kGramStride = kGramLeaf + 8;
// Rows come in multiples of it; those that are too many are zeros.
inline constexpr std::size_t kGramRows = 4;

struct GramKernels {
  // packed[i] = values[i] * factor for i < count, zero up to kGramLeaf.
  void (*pack_f32)(const WireFloat* values, std::size_t count, double factor, double* packed);
  void (*pack_f64)(const WireDouble* values, std::size_t count, double factor, double* packed);
  // gram[i * rows + j] += inner product of rows i and j, for j <= i and some j > i, where row i
  // is packed[i * kGramStride ..]. The product of coordinate k goes to lane k % 8, lanes are added
  // in halves, all in double. add_exact is for values of at most 26 significant bits, whose
  // products are exact.
  void (*add_exact)(const double* packed, std::size_t rows, double* gram);
  void (*add_rounded)(const double* packed, std::size_t rows, double* gram);
};

struct RuleKernels {
  const char* name;
  ColumnKernels<float> f32;
  ColumnKernels<double> f64;
  GramKernels gram;
};

// Each is the only symbol of its object file, like the tables of kernel_table.h.
extern const RuleKernels kBaseRuleKernels;
#if defined(__x86_64__)
extern const RuleKernels kV2RuleKernels;
extern const RuleKernels kV3RuleKernels;
extern const RuleKernels kV4RuleKernels;
#endif

}  // namespace veilsum
