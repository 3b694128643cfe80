// Inner products of all pairs of rows, every bit as the CPU adds them: the product of coordinate k
// of a leaf to lane k % 8, lanes in halves, leaves in order.
//
// A block has the pairs of sixteen rows with sixteen others, a thread sixteen of those pairs in one
// lane: eight loads from shared memory for sixteen products. Eight threads are the lanes of the
// same pairs.
#include "device.h"
#include "device/gram_launchers.h"

namespace veilsum {
namespace {

constexpr unsigned kTileValues = 4096;
constexpr unsigned kLeaf = 512;   // kGramLeaf
constexpr unsigned kChunk = 128;  // of a leaf, at once in shared memory
// From one packed row to the next. Eight doubles more than a multiple of sixteen: half a warp,
// which is eight lanes in two neighbouring rows, reads from sixteen pairs of banks.
constexpr unsigned kStride = kChunk + 8;
constexpr unsigned kLanes = 8;
constexpr unsigned kBlockRows = 16;
constexpr unsigned kThreadRows = 4;
constexpr unsigned kGroups = kBlockRows / kThreadRows * (kBlockRows / kThreadRows);
constexpr unsigned kThreads = kGroups * kLanes;
constexpr unsigned kSums = kThreadRows * kThreadRows;
constexpr std::size_t kSharedBytes = 2 * kBlockRows * kStride * sizeof(double);
constexpr std::size_t kMostBlocks = 65536;

// sum + a * b. Products of floats are exact in double: one rounding and two are the same.
template <class Value>
__device__ __forceinline__ double multiply_add(double a, double b, double sum) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Value) == sizeof(float)) return __fma_rn(a, b, sum);
#endif
  return sum + a * b;
}

struct PairTile {
  std::size_t range;
  unsigned first_row;     // the larger number of each pair
  unsigned first_column;  // the smaller
};

__device__ __forceinline__ PairTile pair_tile(std::size_t work, unsigned pair_tiles) {
  auto column = static_cast<unsigned>(work % pair_tiles);
  unsigned row = 0;
  for (; column > row; ++row) column -= row + 1;
  return {work / pair_tiles, row * kBlockRows, column * kBlockRows};
}

// kChunk values of sixteen rows from `first` on, each times its factor; zeros for rows that there
// are not.
template <class Value>
__device__ __forceinline__ void pack(const WindowGram& job, unsigned first, std::size_t at,
                                     double* packed) {
  for (unsigned i = threadIdx.x; i < kBlockRows * kChunk; i += blockDim.x) {
    const unsigned r = i / kChunk;
    const unsigned k = i % kChunk;
    double value = 0;
    if (first + r < job.rows) {
      const GramRow row = job.row[first + r];
      value = static_cast<double>(load_global<Value>(row.values + (at + k) * sizeof(Value))) *
              row.factor;
    }
    packed[r * kStride + k] = value;
  }
}

// A thread's rows are four apart, so that neighbouring threads read neighbouring rows.
template <class Value>
__device__ __forceinline__ void add_chunk(const double* rows, const double* columns, unsigned lane,
                                          double* sums) {
  constexpr unsigned kApart = kBlockRows / kThreadRows * kStride;
  VS_UNROLL(2)
  for (unsigned k = lane; k < kChunk; k += kLanes) {
    double left[kThreadRows];
    double right[kThreadRows];
    VS_UNROLL(4)
    for (unsigned m = 0; m < kThreadRows; ++m) {
      left[m] = rows[m * kApart + k];
      right[m] = columns[m * kApart + k];
    }
    VS_UNROLL(16)
    for (unsigned s = 0; s < kSums; ++s)
      sums[s] = multiply_add<Value>(left[s / kThreadRows], right[s % kThreadRows], sums[s]);
  }
}

// One halving of lanes: of 2 * kHalf sums, the lower lanes go on with the first half and the upper
// ones with the second, each with what its partner had of them.
template <unsigned kHalf>
__device__ __forceinline__ void halve_lanes(double* sums, unsigned lane, unsigned apart) {
  const bool upper = (lane & apart) != 0;
  VS_UNROLL(8)
  for (unsigned s = 0; s < kHalf; ++s) {
    const double given = upper ? sums[s] : sums[s + kHalf];
    const double kept = upper ? sums[s + kHalf] : sums[s];
    sums[s] = kept + __shfl_xor_sync(0xFFFFFFFFu, given, static_cast<int>(apart));
  }
}

// Two pairs that a thread keeps of the sixteen that its lanes have added.
struct OwnPairs {
  std::size_t place[2];
  bool there[2];
};

__device__ __forceinline__ OwnPairs own_pairs(const WindowGram& job, const PairTile& tile,
                                              unsigned group, unsigned lane) {
  OwnPairs own{};
  const unsigned first = (lane & 4) * 2 + (lane & 2) * 2 + (lane & 1) * 2;
  for (unsigned k = 0; k < 2; ++k) {
    const unsigned s = first + k;
    const std::size_t i = tile.first_row + group / kThreadRows + s / kThreadRows * kThreadRows;
    const std::size_t j = tile.first_column + group % kThreadRows + s % kThreadRows * kThreadRows;
    own.there[k] = group < kGroups && i < job.rows && j <= i;
    own.place[k] = tile.range * (job.rows * (job.rows + 1) / 2) + i * (i + 1) / 2 + j;
  }
  return own;
}

// One leaf's sums of a thread's sixteen pairs, and of them its own two in the end.
template <class Value>
__device__ __forceinline__ void sum_leaf(const WindowGram& job, const PairTile& tile,
                                         std::size_t at, unsigned group, double* totals) {
  double* const rows = shared_memory<double>();
  double* const columns = rows + kBlockRows * kStride;
  const unsigned lane = threadIdx.x % kLanes;
  double sums[kSums] = {};
  for (unsigned chunk = 0; chunk < kLeaf; chunk += kChunk) {
    pack<Value>(job, tile.first_row, at + chunk, rows);
    pack<Value>(job, tile.first_column, at + chunk, columns);
    __syncthreads();
    if (group < kGroups)
      add_chunk<Value>(rows + group / kThreadRows * kStride,
                       columns + group % kThreadRows * kStride, lane, sums);
    __syncthreads();  // read by all before the next chunk is written
  }
  halve_lanes<8>(sums, lane, 4);
  halve_lanes<4>(sums, lane, 2);
  halve_lanes<2>(sums, lane, 1);
  totals[0] += sums[0];
  totals[1] += sums[1];
}

// Leaves of a range are one block's, because their sums are added in order. A block of fewer
// threads than there are groups of pairs goes over the values several times.
template <class Value>
__global__ void __launch_bounds__(2 * kThreads)
    gram_kernel(WindowGram job, unsigned pair_tiles, std::size_t work_items) {
  const unsigned lane = threadIdx.x % kLanes;
  for (std::size_t work = blockIdx.x; work < work_items; work += gridDim.x) {
    const PairTile tile = pair_tile(work, pair_tiles);
    const std::size_t begin = tile.range * kGramRangeTiles * kTileValues;
    const std::size_t whole = begin + kGramRangeTiles * kTileValues;
    const std::size_t last = job.tiles * kTileValues;
    const std::size_t end = whole < last ? whole : last;
    for (unsigned first = 0; first < kGroups; first += blockDim.x / kLanes) {
      const unsigned group = first + threadIdx.x / kLanes;
      const OwnPairs own = own_pairs(job, tile, group, lane);
      double totals[2];
      for (unsigned k = 0; k < 2; ++k)
        totals[k] = job.first || !own.there[k] ? 0 : job.gram[own.place[k]];
      for (std::size_t at = begin; at < end; at += kLeaf)
        sum_leaf<Value>(job, tile, at, group, totals);
      for (unsigned k = 0; k < 2; ++k)
        if (own.there[k]) job.gram[own.place[k]] = totals[k];
    }
  }
}

// --- launchers -------------------------------------------------------------------------------

int add_window(const Launch& launch, const WindowGram& window) {
  const std::size_t side = (window.rows + kBlockRows - 1) / kBlockRows;
  const std::size_t pair_tiles = side * (side + 1) / 2;
  const std::size_t ranges = (window.tiles + kGramRangeTiles - 1) / kGramRangeTiles;
  const std::size_t work = ranges * pair_tiles;
  return launch_kernel("gram_kernel", launch, choose_blocks(launch, work, kMostBlocks),
                       choose_threads(launch, kThreads), kSharedBytes,
                       window.wide ? gram_kernel<double> : gram_kernel<float>, window,
                       static_cast<unsigned>(pair_tiles), work);
}

}  // namespace

extern const GramLaunchers VS_DEVICE_TABLE(gram);
const GramLaunchers VS_DEVICE_TABLE(gram) = {add_window};

}  // namespace veilsum
