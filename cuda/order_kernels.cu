// Order statistics: every thread sorts one column. Up to 32 rows it does so in registers, by a
// network that the compiler unrolls; more are sorted in runs of 32, which are merged in shared
// memory, where a column's values are a piece apart, so that the lanes of a warp are in 32 banks.
#include "device.h"
#include "device/order_launchers.h"
#include "element/fixed_point.h"
#include "element/order.h"
#include "element/sorting_network.h"
#include "mean_of.h"

namespace veilsum {
namespace {

constexpr unsigned kTileValues = 4096;
constexpr unsigned kThreads = 256;
constexpr std::size_t kMostBlocks = 4096;
// That fit a processor at once: 32 values, of doubles too, stay in registers.
[[maybe_unused]] constexpr unsigned kSortedBlocks = 2;
static_assert(kRegisterRows == kMaxNetwork);

// Both values come out of a comparison. Which of two zeros is the smaller one is left to the
// device: no result shows it.
struct ValueOrder {
  VS_FN float smaller(float a, float b) {
#if defined(__CUDA_ARCH__)
    return fminf(a, b);  // one instruction
#else
    return a < b ? a : b;
#endif
  }
  VS_FN float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
    return fmaxf(a, b);
#else
    return a < b ? b : a;
#endif
  }
  // One comparison for both; there is no instruction that takes the smaller double.
  VS_FN double smaller(double a, double b) { return a < b ? a : b; }
  VS_FN double larger(double a, double b) { return a < b ? b : a; }
};

template <class Value>
__device__ __forceinline__ Value value_at(const unsigned char* row, std::size_t at) {
  return load_global<Value>(row + at * sizeof(Value));
}

// --- rows that are means -------------------------------------------------------------------

// Lanes take neighbouring columns of one row, so that every update is read in whole lines. What
// several rows read of it comes out of the caches.
template <class Value>
__global__ void __launch_bounds__(kThreads) mean_rows_kernel(RowMeans job) {
  const std::size_t columns = job.tiles * kTileValues;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t place = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; place < job.rows * columns; place += stride) {
    const std::size_t number = place / columns;
    const std::size_t at = place % columns;
    const MixRow row = job.row[number];
    const int exponent = job.exponent[at / kTileValues * job.rows + number];
    const double factor = power_of_two(exponent);
    std::uint64_t sum = 0;
    VS_UNROLL(4)
    for (unsigned k = 0; k < row.terms; ++k) {
      const MixTerm term = job.term[row.first_term + k];
      const auto value = static_cast<double>(value_at<Value>(term.values, at));
      sum += term.weight * to_fixed_point(value * factor);
    }
    const TileDivisor own = {row.reciprocal * power_of_two(-exponent), exponent};
    const MeanFormat format = sizeof(Value) == sizeof(float) ? MeanFormat::f32 : MeanFormat::f64;
    reinterpret_cast<Value*>(row.values)[at] =
        static_cast<Value>(mean_of(sum, divisors_of(row.total_weight), own, format));
  }
}

// --- medians in registers -------------------------------------------------------------------

template <class Value, std::size_t kRows>
__global__ void __launch_bounds__(kThreads) median_kernel(ColumnOrder job) {
  const std::size_t columns = job.tiles * kTileValues;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; at < columns; at += stride) {
    Value values[kRows];
    VS_UNROLL(32)
    for (unsigned r = 0; r < kRows; ++r) values[r] = value_at<Value>(job.row[r], at);
    run_network<Median<kRows>, ValueOrder>(values);
    static_cast<Value*>(job.results)[at] = middle_of(values[(kRows - 1) / 2], values[kRows / 2]);
  }
}

// --- sorted columns -------------------------------------------------------------------------
//
// Value r of a column is at column[r * kOrderPiece]. A column is one thread's alone.

template <class Value>
VS_FN Value behind_all() {
  return static_cast<Value>(__builtin_inff());
}

// Rows that there are not sort behind those that there are.
template <class Value, unsigned kRun>
__device__ __forceinline__ void sort_run(const ColumnOrder& job, std::size_t at, std::size_t first,
                                         Value* column) {
  Value values[kRun];
  VS_UNROLL(32)
  for (unsigned r = 0; r < kRun; ++r)
    values[r] =
        first + r < job.rows ? value_at<Value>(job.row[first + r], at) : behind_all<Value>();
  run_network<Sorting<kRun>, ValueOrder>(values);
  VS_UNROLL(32)
  for (unsigned r = 0; r < kRun; ++r) column[(first + r) * kOrderPiece] = values[r];
}

template <class Value>
__device__ __forceinline__ void compare_rows(Value* column, std::size_t low, std::size_t high) {
  const Value a = column[low * kOrderPiece];
  const Value b = column[high * kOrderPiece];
  column[low * kOrderPiece] = ValueOrder::smaller(a, b);
  column[high * kOrderPiece] = ValueOrder::larger(a, b);
}

template <class Value>
__device__ __forceinline__ void sort_bitonic(Value* column) {
  Value values[kMaxNetwork];
  VS_UNROLL(32)
  for (unsigned r = 0; r < kMaxNetwork; ++r) values[r] = column[r * kOrderPiece];
  run_network<Bitonic, ValueOrder>(values);
  VS_UNROLL(32)
  for (unsigned r = 0; r < kMaxNetwork; ++r) column[r * kOrderPiece] = values[r];
}

// Merges two sorted runs that lie one behind the other: comparing the first with the second
// backwards leaves the smaller half below and the larger above, both bitonic.
template <class Value>
__device__ __forceinline__ void merge_runs(Value* column, std::size_t run) {
  for (std::size_t i = 0; i < run; ++i) compare_rows(column, i, 2 * run - 1 - i);
  for (std::size_t gap = run / 2; gap >= kMaxNetwork; gap /= 2)
    for (std::size_t begin = 0; begin < 2 * run; begin += 2 * gap)
      for (std::size_t i = begin; i < begin + gap; ++i) compare_rows(column, i, i + gap);
  for (std::size_t begin = 0; begin < 2 * run; begin += kMaxNetwork)
    sort_bitonic(column + begin * kOrderPiece);
}

template <class Value, unsigned kRun>
__device__ void sort_column(const ColumnOrder& job, std::size_t at, Value* column) {
  if constexpr (kRun < kMaxNetwork) return sort_run<Value, kRun>(job, at, 0, column);
  const std::size_t room = sorted_rows(job.rows);
  VS_UNROLL(1)
  for (std::size_t first = 0; first < room; first += kMaxNetwork)
    sort_run<Value, kMaxNetwork>(job, at, first, column);
  VS_UNROLL(1)
  for (std::size_t run = kMaxNetwork; run < room; run *= 2)
    for (std::size_t begin = 0; begin + run < job.rows; begin += 2 * run)
      merge_runs(column + begin * kOrderPiece, run);
}

// Where the block's columns are: behind what its warps need, or in its part of the scratch.
template <class Value>
__device__ __forceinline__ Value* piece_columns(const ColumnOrder& job) {
  if (job.scratch == nullptr)
    return reinterpret_cast<Value*>(shared_memory<unsigned char>() + kOrderSharedBytes);
  return static_cast<Value*>(job.scratch) + blockIdx.x * sorted_rows(job.rows) * kOrderPiece;
}

template <class Value>
__global__ void __launch_bounds__(kThreads, kSortedBlocks) sorted_median_kernel(ColumnOrder job) {
  Value* const columns = piece_columns<Value>(job);
  const std::size_t pieces = job.tiles * kTileValues / kOrderPiece;
  for (std::size_t piece = blockIdx.x; piece < pieces; piece += gridDim.x)
    for (unsigned c = threadIdx.x; c < kOrderPiece; c += blockDim.x) {
      const std::size_t at = piece * kOrderPiece + c;
      Value* const column = columns + c;
      sort_column<Value, kMaxNetwork>(job, at, column);
      static_cast<Value*>(job.results)[at] =
          middle_of(column[(job.rows - 1) / 2 * kOrderPiece], column[job.rows / 2 * kOrderPiece]);
    }
}

// --- means of what is kept ------------------------------------------------------------------

// The rank from which values are kept. Those nearest to the median are neighbours: the window over
// them starts where the value that it would lose is not farther than the one it would win, and
// differences only grow along a sorted column.
template <class Value, bool kWindows>
__device__ __forceinline__ std::size_t first_kept(const ColumnOrder& job, const Value* column) {
  if constexpr (!kWindows) return job.first;
  const auto at = [column](std::size_t r) { return static_cast<double>(column[r * kOrderPiece]); };
  const double middle = at((job.rows - 1) / 2) * 0.5 + at(job.rows / 2) * 0.5;
  std::size_t start = 0;
  while (start + job.kept < job.rows && middle - at(start) > at(start + job.kept) - middle) ++start;
  return start;
}

// In a sorted column the largest magnitude is at one of the ends.
template <class Value>
__device__ __forceinline__ double largest_kept(const ColumnOrder& job, const Value* column,
                                               std::size_t start) {
  const double low = __builtin_fabs(static_cast<double>(column[start * kOrderPiece]));
  const double high =
      __builtin_fabs(static_cast<double>(column[(start + job.kept - 1) * kOrderPiece]));
  return low > high ? low : high;
}

// The largest of what the threads of the block hold. `of_warps` has a place for each warp.
__device__ __forceinline__ double block_largest(double own, double* of_warps) {
  for (int flip = 16; flip > 0; flip /= 2) {
    const double other = __shfl_xor_sync(0xFFFFFFFFu, own, flip);
    own = other > own ? other : own;
  }
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = own;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp)
    own = of_warps[warp] > own ? of_warps[warp] : own;
  __syncthreads();  // read by all before the next piece's are written
  return own;
}

template <class Value>
__device__ __forceinline__ std::uint64_t sum_kept(const ColumnOrder& job, const Value* column,
                                                  std::size_t start, double factor) {
  std::uint64_t sum = 0;
  VS_UNROLL(4)
  for (std::size_t r = start; r < start + job.kept; ++r)
    sum += to_fixed_point(static_cast<double>(column[r * kOrderPiece]) * factor);
  return sum;
}

// A block takes a piece at a time, because the columns of a piece share an exponent.
template <class Value, unsigned kRun, bool kWindows>
__global__ void __launch_bounds__(kThreads, kSortedBlocks) kept_kernel(ColumnOrder job) {
  auto* const of_warps = shared_memory<double>();
  Value* const columns = piece_columns<Value>(job);
  const Divisors all = divisors_of(job.kept);
  const std::size_t pieces = job.tiles * kTileValues / kOrderPiece;
  for (std::size_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    double largest = 0;
    for (unsigned c = threadIdx.x; c < kOrderPiece; c += blockDim.x) {
      sort_column<Value, kRun>(job, piece * kOrderPiece + c, columns + c);
      const std::size_t start = first_kept<Value, kWindows>(job, columns + c);
      const double found = largest_kept(job, columns + c, start);
      largest = found > largest ? found : largest;
    }
    const int exponent = sum_exponent(block_largest(largest, of_warps), job.kept);
    const TileDivisor own = {job.reciprocal * power_of_two(-exponent), exponent};
    for (unsigned c = threadIdx.x; c < kOrderPiece; c += blockDim.x) {
      const std::size_t at = piece * kOrderPiece + c;
      const std::size_t start = first_kept<Value, kWindows>(job, columns + c);
      const std::uint64_t sum = sum_kept(job, columns + c, start, power_of_two(exponent));
      static_cast<Value*>(job.results)[at] =
          static_cast<Value>(mean_of(sum, all, own, job.format[at / 64]));
    }
  }
}

// --- launchers -------------------------------------------------------------------------------

int mean_rows(const Launch& launch, const RowMeans& means) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t work = (means.rows * means.tiles * kTileValues + threads - 1) / threads;
  return launch_kernel("mean_rows_kernel", launch, choose_blocks(launch, work, kMostBlocks),
                       threads, 0, means.wide ? mean_rows_kernel<double> : mean_rows_kernel<float>,
                       means);
}

using OrderKernel = void (*)(ColumnOrder);

int launch_columns(const Launch& launch, const ColumnOrder& order, OrderKernel kernel) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t work = (order.tiles * kTileValues + threads - 1) / threads;
  return launch_kernel("median_kernel", launch, choose_blocks(launch, work, kMostBlocks), threads,
                       0, kernel, order);
}

int launch_pieces(const Launch& launch, const ColumnOrder& order, OrderKernel kernel) {
  const bool shared = order.scratch == nullptr;
  const std::size_t bytes =
      kOrderSharedBytes + (shared ? sorted_piece_bytes(order.rows, order.wide) : 0);
  const std::size_t pieces = order.tiles * kTileValues / kOrderPiece;
  return launch_kernel("kept_kernel", launch,
                       choose_blocks(launch, pieces, shared ? kMostBlocks : kScratchBlocks),
                       choose_threads(launch, kThreads), bytes, kernel, order);
}

template <class Value, std::size_t... kRows>
OrderKernel median_of_rows(std::size_t rows, std::index_sequence<kRows...>) {
  static constexpr OrderKernel kKernels[] = {median_kernel<Value, kRows + 1>...};
  return kKernels[rows - 1];
}

template <class Value>
int take_medians(const Launch& launch, const ColumnOrder& order) {
  if (order.rows > kRegisterRows) return launch_pieces(launch, order, sorted_median_kernel<Value>);
  return launch_columns(
      launch, order, median_of_rows<Value>(order.rows, std::make_index_sequence<kRegisterRows>()));
}

// Networks of four sizes: those in between would save little and are many kernels.
template <class Value, bool kWindows>
int take_kept(const Launch& launch, const ColumnOrder& order) {
  return launch_pieces(launch, order,
                       order.rows <= 4    ? kept_kernel<Value, 4, kWindows>
                       : order.rows <= 8  ? kept_kernel<Value, 8, kWindows>
                       : order.rows <= 16 ? kept_kernel<Value, 16, kWindows>
                                          : kept_kernel<Value, 32, kWindows>);
}

template <class Value>
int order_values(const Launch& launch, const ColumnOrder& order) {
  switch (order.rule) {
    case ColumnRule::median:
      return take_medians<Value>(launch, order);
    case ColumnRule::middle:
      return take_kept<Value, false>(launch, order);
    default:
      return take_kept<Value, true>(launch, order);
  }
}

int order_columns(const Launch& launch, const ColumnOrder& order) {
  return order.wide ? order_values<double>(launch, order) : order_values<float>(launch, order);
}

}  // namespace

extern const OrderLaunchers VS_DEVICE_TABLE(order);
const OrderLaunchers VS_DEVICE_TABLE(order) = {mean_rows, order_columns};

}  // namespace veilsum
