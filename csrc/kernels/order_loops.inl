// Order statistics of every column. Included once per CPU level; everything has internal
// linkage and no inline function of the standard library is called (see ring_loops.inl).
//
// A block is as many columns as a vector has lanes: row r of a block is one vector.
#pragma once

#include "element/order.h"
#include "kernels/order_kernels.h"
#include "kernels/sorting_network.inl"
#include "kernels/sum_lanes.inl"

namespace veilsum {
namespace {

template <class Value>
struct Column {
  typedef Value Lanes __attribute__((vector_size(4 * VS_LANES)));
};
template <class Value>
using LanesOf = typename Column<Value>::Lanes;
template <class Value>
constexpr std::size_t kBlock = 4 * VS_LANES / sizeof(Value);

// `count` values from `begin`, or as many as there are lanes.
template <class Value>
VS_FN LanesOf<Value> load_lanes(Row row, std::size_t begin, std::size_t count) {
  LanesOf<Value> lanes = {};
  const unsigned char* values = row + begin * sizeof(Value);
  if (count >= kBlock<Value>)
    __builtin_memcpy(&lanes, values, sizeof lanes);
  else
    __builtin_memcpy(&lanes, values, count * sizeof(Value));
  return lanes;
}

// --- sorting ----------------------------------------------------------------------

// A part of some rows: `count` values from `begin`, or as many as there are lanes.
struct Part {
  const Row* rows;
  std::size_t begin;
  std::size_t count;
};

template <class Value, std::size_t kRows>
void sort_rows(const Part& part, LanesOf<Value>* block) {
  LanesOf<Value> values[kRows];
#pragma GCC unroll 32
  for (std::size_t r = 0; r < kRows; ++r)
    values[r] = load_lanes<Value>(part.rows[r], part.begin, part.count);
  run_network<Sorting<kRows>, LaneOrder>(values);
#pragma GCC unroll 32
  for (std::size_t r = 0; r < kRows; ++r) block[r] = values[r];
}

template <class Value>
using SortRows = void (*)(const Part& part, LanesOf<Value>* block);

// A table in memory: one that is local to a function would be written at every call.
template <class Value>
struct SorterTable {
  SortRows<Value> of[kMaxNetwork];  // one row, two rows ...
};
template <class Value, std::size_t... kRows>
consteval SorterTable<Value> make_sorters(std::index_sequence<kRows...>) {
  return {{sort_rows<Value, kRows + 1>...}};
}
template <class Value>
constexpr SorterTable<Value> kSorters =
    make_sorters<Value>(std::make_index_sequence<kMaxNetwork>());

// One step of a bitonic merge over more rows than there are registers.
template <class Lanes>
VS_FN void compare_rows(Lanes* low, Lanes* high, std::size_t rows) {
  for (std::size_t i = 0; i < rows; ++i) {
    const Lanes a = low[i];
    const Lanes b = high[i];
    low[i] = smaller_of(a, b);
    high[i] = larger_of(a, b);
  }
}

// Merges two sorted runs that lie one behind the other. Comparing the first with the second
// backwards leaves the smaller half below and the larger above, both bitonic.
template <class Lanes>
void merge_two(Lanes* block, std::size_t run) {
  for (std::size_t i = 0; i < run; ++i) {
    const Lanes a = block[i];
    const Lanes b = block[2 * run - 1 - i];
    block[i] = smaller_of(a, b);
    block[2 * run - 1 - i] = larger_of(a, b);
  }
  for (std::size_t gap = run / 2; gap >= kMaxNetwork; gap /= 2)
    for (std::size_t begin = 0; begin < 2 * run; begin += 2 * gap)
      compare_rows(block + begin, block + begin + gap, gap);
  for (std::size_t begin = 0; begin < 2 * run; begin += kMaxNetwork) {
    Lanes values[kMaxNetwork];
#pragma GCC unroll 32
    for (std::size_t r = 0; r < kMaxNetwork; ++r) values[r] = block[begin + r];
    run_network<Bitonic, LaneOrder>(values);
#pragma GCC unroll 32
    for (std::size_t r = 0; r < kMaxNetwork; ++r) block[begin + r] = values[r];
  }
}

// Sorts the columns of a piece: block after block of them, `stride` rows apart. What is behind the
// rows of a block, up to a power of two, is filled with what sorts behind everything.
//
// Not more rows are read side by side than a CPU reads ahead by itself.
template <class Value>
void sort_piece(const Row* rows, std::size_t row_count, std::size_t count, std::size_t stride,
                LanesOf<Value>* blocks) {
  for (std::size_t r = 0; r < row_count; r += kMaxNetwork) {
    const std::size_t some = row_count - r < kMaxNetwork ? row_count - r : kMaxNetwork;
    const SortRows<Value> sort = kSorters<Value>.of[some - 1];
    LanesOf<Value>* block = blocks + r;
    for (std::size_t begin = 0; begin < count; begin += kBlock<Value>, block += stride)
      sort({rows + r, begin, count - begin}, block);
  }
  if (row_count <= kMaxNetwork) return;
  const std::size_t filled = order_room(row_count);
  LanesOf<Value>* block = blocks;
  for (std::size_t at = 0; at < count; at += kBlock<Value>, block += stride) {
    for (std::size_t r = row_count; r < filled; ++r) block[r] = LanesOf<Value>{} + __builtin_inff();
    for (std::size_t run = kMaxNetwork; run < row_count; run *= 2)
      for (std::size_t begin = 0; begin + run < row_count; begin += 2 * run)
        merge_two(block + begin, run);
  }
}

// --- medians ----------------------------------------------------------------------

// Whole vectors are stored as such: a copy of unknown length is a loop over words.
template <class Lanes>
VS_FN void store_lanes(const Lanes& lanes, std::size_t count, void* out) {
  constexpr std::size_t kWidth = sizeof(lanes) / sizeof(lanes[0]);
  if (count >= kWidth)
    __builtin_memcpy(out, &lanes, sizeof lanes);
  else
    __builtin_memcpy(out, &lanes, count * sizeof(lanes[0]));
}

// middle_of() in every lane.
VS_FN void store_middle(LanesOf<float> low, LanesOf<float> high, std::size_t count, float* out) {
  FloatLanes lows[2];
  FloatLanes highs[2];
  __builtin_memcpy(lows, &low, sizeof low);
  __builtin_memcpy(highs, &high, sizeof high);
  FloatLanes means[2];
#pragma GCC unroll 2
  for (std::size_t half = 0; half < 2; ++half) {
    const DoubleLanes sum = to_double_lanes(lows[half]) + to_double_lanes(highs[half]);
    means[half] = __builtin_convertvector(sum * 0.5, FloatLanes) + 0.0f;
  }
  LanesOf<float> middle;
  __builtin_memcpy(&middle, means, sizeof middle);
  store_lanes(middle, count, out);
}

VS_FN void store_middle(LanesOf<double> low, LanesOf<double> high, std::size_t count, double* out) {
  for (std::size_t i = 0; i < kSumLanes && i < count; ++i) out[i] = middle_of(low[i], high[i]);
}

template <std::size_t kRows>
void median_of_rows(const Row* rows, std::size_t count, float* medians) {
  for (std::size_t begin = 0; begin < count; begin += VS_LANES) {
    LanesOf<float> values[kRows];
#pragma GCC unroll 32
    for (std::size_t r = 0; r < kRows; ++r)
      values[r] = load_lanes<float>(rows[r], begin, count - begin);
    run_network<Median<kRows>, LaneOrder>(values);
    store_middle(values[(kRows - 1) / 2], values[kRows / 2], count - begin, medians + begin);
  }
}

using MedianOfRows = void (*)(const Row* rows, std::size_t count, float* medians);

template <std::size_t... kRows>
VS_FN MedianOfRows median_network(std::size_t rows, std::index_sequence<kRows...>) {
  constexpr MedianOfRows kMedians[] = {median_of_rows<kRows + 1>...};
  return kMedians[rows - 1];
}

template <class Lanes>
struct Middle {
  Lanes low;
  Lanes high;
};

// The middle two of two sorted halves. Comparing one with the other backwards leaves the smaller
// values of all on one side, the largest of which is the lower middle, and the larger ones on the
// other. Two of each are kept, so that one comparison need not wait for the last.
template <class Lanes>
VS_FN Middle<Lanes> middle_of_halves(const Lanes* first, const Lanes* second, std::size_t half) {
  Lanes low[2] = {Lanes{} - __builtin_inff(), Lanes{} - __builtin_inff()};
  Lanes high[2] = {Lanes{} + __builtin_inff(), Lanes{} + __builtin_inff()};
  for (std::size_t r = 0; r < half; r += 2)
    for (std::size_t k = 0; k < 2; ++k) {
      const std::size_t i = r + k < half ? r + k : r;
      low[k] = larger_of(low[k], smaller_of(first[i], second[half - 1 - i]));
      high[k] = smaller_of(high[k], larger_of(first[i], second[half - 1 - i]));
    }
  return {larger_of(low[0], low[1]), smaller_of(high[0], high[1])};
}

// If the number of rows is odd, the second half gets what sorts behind everything.
template <class Value>
void median_of_piece(const Row* rows, std::size_t row_count, std::size_t count, void* scratch,
                     Value* medians) {
  using Lanes = LanesOf<Value>;
  const std::size_t half = (row_count + 1) / 2;
  const bool odd = row_count % 2 == 1;
  const std::size_t room = order_room(half);
  auto* first = static_cast<Lanes*>(scratch);
  sort_piece<Value>(rows, half, count, 2 * room, first);
  sort_piece<Value>(rows + half, row_count - half, count, 2 * room, first + room);
  for (std::size_t begin = 0; begin < count; begin += kBlock<Value>, first += 2 * room) {
    Lanes* second = first + room;
    if (odd) second[half - 1] = Lanes{} + __builtin_inff();
    const Middle<Lanes> middle = middle_of_halves(first, second, half);
    store_middle(middle.low, odd ? middle.low : middle.high, count - begin, medians + begin);
  }
}

// Up to kMaxNetwork rows of floats: only what the median depends on is computed.
void median_f32(const Row* rows, std::size_t row_count, std::size_t count, void* scratch,
                float* medians) {
  if (row_count > kMaxNetwork)
    return median_of_piece<float>(rows, row_count, count, scratch, medians);
  median_network(row_count, std::make_index_sequence<kMaxNetwork>())(rows, count, medians);
}

// --- sums of what is kept -----------------------------------------------------------

// Columns go through in parts of kSumLanes, as many as 64-bit sums fit a vector.
template <class Value>
constexpr std::size_t kParts = kBlock<Value> / kSumLanes;

// Lanes kSumLanes * part .. of a row as doubles.
VS_FN DoubleLanes widen_part(const LanesOf<float>& row, std::size_t part) {
  FloatLanes narrow;
  __builtin_memcpy(&narrow, reinterpret_cast<const char*>(&row) + part * sizeof narrow,
                   sizeof narrow);
  return to_double_lanes(narrow);
}
VS_FN DoubleLanes widen_part(const LanesOf<double>& row, std::size_t) { return row; }

// Which ranks of each column are kept: from `start` on. Sorted columns of a whole piece, with the
// starts of each, are what both passes over them share: the first finds the largest value kept,
// the second sums.
struct PieceStarts {
  SumLanes parts[kOrderPiece / kSumLanes];
};

// The median as a double that holds the exact mean of two floats, or rounds that of two doubles.
template <class Value>
VS_FN DoubleLanes middle_part(const LanesOf<Value>* block, std::size_t rows, std::size_t part) {
  return widen_part(block[(rows - 1) / 2], part) * 0.5 + widen_part(block[rows / 2], part) * 0.5;
}

// In a sorted column the nearest values are neighbours. The window over them starts where the
// value it would lose on its lower side is not farther than the one it would win on the upper:
// differences only grow along the column, so it is enough to count where the lower is farther.
template <class Value>
VS_FN SumLanes nearest_start(const LanesOf<Value>* block, const KeptRanks& kept, std::size_t part) {
  const DoubleLanes middle = middle_part<Value>(block, kept.rows, part);
  SumLanes start = {};
  for (std::size_t r = 0; r + kept.count < kept.rows; ++r) {
    const DoubleLanes lower = widen_part(block[r], part);
    const DoubleLanes upper = widen_part(block[r + kept.count], part);
    start -= (SumLanes)(middle - lower > upper - middle);
  }
  return start;
}

// Calls use(values, kept) for every rank that some column keeps; `kept` has all bits of a lane set
// where its column does. A rank that every window holds needs no comparison.
template <class Value, class Use>
VS_FN void for_kept(const LanesOf<Value>* block, const KeptRanks& kept, std::size_t part,
                    SumLanes start, bool windows, const Use& use) {
  const SumLanes all = ~SumLanes{};
  if (!windows) {
    for (std::size_t r = kept.first; r < kept.first + kept.count; ++r)
      use(widen_part(block[r], part), all);
    return;
  }
  const SumLanes end = start + kept.count;
  for (std::size_t r = 0; r < kept.rows; ++r) {
    const SumLanes rank = SumLanes{} + r;
    use(widen_part(block[r], part), (SumLanes)(start <= rank) & (SumLanes)(rank < end));
  }
}

// The sorted columns of a piece, block after block.
template <class Value>
struct SortedPiece {
  const LanesOf<Value>* blocks;
  std::size_t stride;
  std::size_t count;
};

// The largest magnitude that is kept. Finds where the windows start.
template <class Value, bool kWindows>
VS_FN double largest_kept(const SortedPiece<Value>& sorted, const KeptRanks& kept,
                          PieceStarts& starts) {
  DoubleLanes largest = {};
  const LanesOf<Value>* block = sorted.blocks;
  for (std::size_t begin = 0, at = 0; begin < sorted.count;
       begin += kBlock<Value>, block += sorted.stride)
    for (std::size_t part = 0; part < kParts<Value>; ++part, ++at) {
      starts.parts[at] = kWindows ? nearest_start<Value>(block, kept, part) : SumLanes{};
      for_kept<Value>(block, kept, part, starts.parts[at], kWindows,
                      [&](DoubleLanes values, SumLanes in) {
                        const SumLanes magnitude = (SumLanes)values & 0x7FFFFFFFFFFFFFFFu & in;
                        const DoubleLanes found = (DoubleLanes)magnitude;
                        largest = found > largest ? found : largest;
                      });
    }
  double most = 0;
  for (std::size_t lane = 0; lane < kSumLanes; ++lane)
    most = largest[lane] > most ? largest[lane] : most;
  return most;
}

template <class Value, bool kWindows>
VS_FN void sum_sorted(const SortedPiece<Value>& sorted, const KeptRanks& kept,
                      const PieceStarts& starts, double factor, std::uint64_t* sums) {
  const LanesOf<Value>* block = sorted.blocks;
  for (std::size_t begin = 0, at = 0; begin < sorted.count;
       begin += kBlock<Value>, block += sorted.stride)
    for (std::size_t part = 0; part < kParts<Value>; ++part, ++at) {
      SumLanes held = {};
      for_kept<Value>(block, kept, part, starts.parts[at], kWindows,
                      [&](DoubleLanes values, SumLanes in) {
                        // What is left out may be beyond what fits a sum: made zero first.
                        const DoubleLanes term = (DoubleLanes)((SumLanes)values & in) * factor;
                        held += to_fixed_point_lanes(term);
                      });
      const std::size_t first = begin + part * kSumLanes;
      if (first >= sorted.count) break;
      store_lanes(held, sorted.count - first, sums + first);
    }
}

template <class Value, bool kWindows>
VS_FN int sum_kept(const Row* rows, const KeptRanks& kept, std::size_t count, void* scratch,
                   std::uint64_t* sums) {
  auto* blocks = static_cast<LanesOf<Value>*>(scratch);
  const SortedPiece<Value> sorted{blocks, order_room(kept.rows), count};
  sort_piece<Value>(rows, kept.rows, count, sorted.stride, blocks);
  PieceStarts starts;
  const double largest = largest_kept<Value, kWindows>(sorted, kept, starts);
  const int exponent = sum_exponent(largest, kept.count);
  sum_sorted<Value, kWindows>(sorted, kept, starts, power_of_two(exponent), sums);
  return exponent;
}

template <class Value>
int sum_middle(const Row* rows, const KeptRanks& kept, std::size_t count, void* scratch,
               std::uint64_t* sums) {
  return sum_kept<Value, false>(rows, kept, count, scratch, sums);
}

template <class Value>
int sum_nearest(const Row* rows, const KeptRanks& kept, std::size_t count, void* scratch,
                std::uint64_t* sums) {
  return sum_kept<Value, true>(rows, kept, count, scratch, sums);
}

constexpr ColumnKernels<float> kFloatColumns = {median_f32, sum_middle<float>, sum_nearest<float>};
constexpr ColumnKernels<double> kDoubleColumns = {median_of_piece<double>, sum_middle<double>,
                                                  sum_nearest<double>};

}  // namespace
}  // namespace veilsum
