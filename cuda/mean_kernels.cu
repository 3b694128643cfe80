// The exact mean: every thread takes a few consecutive coordinates, walks over all updates with
// their sums in registers, and ends with the sums or with the means.
#include "codes.h"
#include "device.h"
#include "device/mean_launchers.h"
#include "element/bits.h"
#include "element/fixed_point.h"
#include "mean_of.h"

namespace veilsum {
namespace {

constexpr unsigned kTileValues = 4096;
constexpr unsigned kThreads = 256;
// Enough blocks that every processor of the largest devices has several.
constexpr std::size_t kMostBlocks = 4096;

// --- how each kind of codes is read ----------------------------------------------------
//
// Each reads kValues consecutive values of one update, from value `at` of the tile on, in one
// load, and adds their terms to the sums. All of them lie in one tile, and in one block of scales.
// kBlocks blocks fit a processor at once, which bounds the registers of a thread.

struct Piece {
  const WindowTerm* term;
  unsigned at;
  unsigned scale_shift;
  WindowScales scale_format;
};

__device__ __forceinline__ float scale_of(const Piece& piece) {
  return load_scale(piece.scale_format, piece.term->scales, piece.at, piece.scale_shift);
}

__device__ __forceinline__ std::uint64_t term_of(float value, double factor) {
  return to_fixed_point(static_cast<double>(value) * factor);
}

// Code times a multiplier, modulo 2^64.
__device__ __forceinline__ std::uint64_t times(int code, std::uint64_t multiplier) {
  return static_cast<std::uint64_t>(std::int64_t{code}) * multiplier;
}

// Patterns of magnitudes order like magnitudes, and a NaN is beyond all of them.
struct FloatCodes {
  static constexpr unsigned kValues = 4;
  [[maybe_unused]] static constexpr unsigned kBlocks = 4;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const float4 four = load_once<float4>(piece.term->codes + 4 * piece.at);
    const float values[] = {four.x, four.y, four.z, four.w};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      within &= (bits_of_float(values[i]) & 0x7FFFFFFFu) <= piece.term->limit;
      sums[i] += term_of(values[i], piece.term->factor);
    }
    return within;
  }
};

struct DoubleCodes {
  static constexpr unsigned kValues = 2;
  [[maybe_unused]] static constexpr unsigned kBlocks = 4;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const double2 two = load_once<double2>(piece.term->codes + 8 * piece.at);
    const double values[] = {two.x, two.y};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      within &= (bits_of_double(values[i]) & kMagnitude) <= piece.term->limit;
      sums[i] += to_fixed_point(values[i] * piece.term->factor);
    }
    return within;
  }
};

template <class Widen>
struct HalfCodes {
  static constexpr unsigned kValues = 8;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const uint4 eight = load_once<uint4>(piece.term->codes + 2 * piece.at);
    const std::uint32_t words[] = {eight.x, eight.y, eight.z, eight.w};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      const auto pattern = static_cast<std::uint16_t>(words[i / 2] >> 16 * (i % 2));
      within &= (pattern & 0x7FFFu) <= piece.term->limit;
      sums[i] += term_of(Widen::widen(pattern), piece.term->factor);
    }
    return within;
  }
};

struct Int8Codes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const uint4 sixteen = load_once<uint4>(piece.term->codes + piece.at);
    const std::uint32_t words[] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
    const std::uint64_t multiplier =
        bounded_fixed_point(static_cast<double>(scale_of(piece)) * piece.term->factor);
    for (unsigned i = 0; i < kValues; ++i)
      sums[i] += times(static_cast<std::int8_t>(words[i / 4] >> 8 * (i % 4)), multiplier);
    return true;
  }
};

// Kinds whose codes stand for multiples of a unit: one rounding per block.
struct Int4Unit {
  static constexpr double kUnit = 1;
  VS_FN int multiple(unsigned code) { return static_cast<int>(code << 28) >> 28; }
};
// Magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 in halves, one per four bits.
struct Fp4Unit {
  static constexpr double kUnit = 0.5;
  VS_FN int multiple(unsigned code) {
    const int magnitude = static_cast<int>(0xC8643210u >> 4 * (code & 7) & 15);
    return (code & 8) != 0 ? -magnitude : magnitude;
  }
};

template <class Unit>
struct UnitNibbles {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const uint2 sixteen = load_once<uint2>(piece.term->codes + piece.at / 2);
    const std::uint32_t words[] = {sixteen.x, sixteen.y};
    const std::uint64_t unit =
        bounded_fixed_point(Unit::kUnit * scale_of(piece) * piece.term->factor);
    for (unsigned i = 0; i < kValues; ++i)
      sums[i] += times(Unit::multiple(words[i / 8] >> 4 * (i % 8) & 15), unit);
    return true;
  }
};

__constant__ CodeTable kNf4 = kNf4Table;

// No unit divides its values, so every code's term is rounded by itself. The sixteen of a block
// would serve 64 coordinates, but no thread has as many.
struct Nf4Codes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 1;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const uint2 sixteen = load_once<uint2>(piece.term->codes + piece.at / 2);
    const std::uint32_t words[] = {sixteen.x, sixteen.y};
    const double scale = scale_of(piece);
    for (unsigned i = 0; i < kValues; ++i) {
      const double value = kNf4.value[words[i / 8] >> 4 * (i % 8) & 15];
      sums[i] += bounded_fixed_point(value * scale * piece.term->factor);
    }
    return true;
  }
};

// Values are products of a code and a scale, rounded to float.
template <class Format>
struct Fp8Codes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const uint4 sixteen = load_once<uint4>(piece.term->codes + piece.at);
    const std::uint32_t words[] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
    const float scale = scale_of(piece);
    for (unsigned i = 0; i < kValues; ++i) {
      const auto pattern = static_cast<std::uint8_t>(words[i / 4] >> 8 * (i % 4));
      sums[i] += term_of(fp8_value<Format>(pattern, scale), piece.term->factor);
    }
    return true;
  }
};

struct SignCodes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const Piece& piece, std::uint64_t* sums) {
    const unsigned bits = load_once<std::uint16_t>(piece.term->codes + piece.at / 8);
    const std::uint64_t term =
        bounded_fixed_point(static_cast<double>(scale_of(piece)) * piece.term->factor);
    for (unsigned i = 0; i < kValues; ++i) sums[i] += (bits >> i & 1) != 0 ? 0 - term : term;
    return true;
  }
};

// --- means -------------------------------------------------------------------------------

// Values whose means a thread takes at once.
constexpr unsigned kMeanValues = 4;

struct MeanSinkArgs {
  Divisors all;
  const TileDivisor* divisor;
  const MeanFormat* format;
  void* means;
  bool wide;
};

MeanSinkArgs sink_args(const WindowMeans& means) {
  return {divisors_of(means.total_weight), means.divisor, means.format, means.means, means.wide};
}

// Two or four sums to means.
template <unsigned kValues>
__device__ void write_some(const MeanSinkArgs& args, std::size_t at, const std::uint64_t* sums) {
  const TileDivisor own = args.divisor[at / kTileValues];
  const MeanFormat format = args.format[at / 64];
  double means[kValues];
  VS_UNROLL(4)
  for (unsigned i = 0; i < kValues; ++i) means[i] = mean_of(sums[i], args.all, own, format);
  if (args.wide) {
    for (unsigned i = 0; i < kValues; i += 2)
      store_aligned(static_cast<double*>(args.means) + at + i, double2{means[i], means[i + 1]});
  } else if constexpr (kValues == 4) {
    store_aligned(static_cast<float*>(args.means) + at,
                  float4{static_cast<float>(means[0]), static_cast<float>(means[1]),
                         static_cast<float>(means[2]), static_cast<float>(means[3])});
  } else {
    store_aligned(static_cast<float*>(args.means) + at,
                  float2{static_cast<float>(means[0]), static_cast<float>(means[1])});
  }
}

// More sums than four go through shared memory, of which every thread has its own places: means
// are then a loop, and not sixteen times the code.
template <unsigned kValues>
constexpr std::size_t mean_shared_bytes(unsigned threads) {
  return kValues > kMeanValues ? std::size_t{threads} * kValues * sizeof(std::uint64_t) : 0;
}

template <unsigned kValues>
__device__ void write_means(const MeanSinkArgs& args, std::size_t at, const std::uint64_t* sums) {
  if constexpr (kValues <= kMeanValues) {
    write_some<kValues>(args, at, sums);
  } else {
    auto* const own = shared_memory<std::uint64_t>() + threadIdx.x;
    VS_UNROLL(16)
    for (unsigned i = 0; i < kValues; ++i) own[i * blockDim.x] = sums[i];
    VS_UNROLL(1)
    for (unsigned i = 0; i < kValues; i += kMeanValues) {
      std::uint64_t some[kMeanValues];
      VS_UNROLL(4)
      for (unsigned j = 0; j < kMeanValues; ++j) some[j] = own[(i + j) * blockDim.x];
      write_some<kMeanValues>(args, at + i, some);
    }
  }
}

template <unsigned kValues>
__device__ void load_sums(const std::uint64_t* from, std::uint64_t* sums) {
  for (unsigned i = 0; i < kValues; i += 2) {
    const ulonglong2 two = load_aligned<ulonglong2>(from + i);
    sums[i] = two.x;
    sums[i + 1] = two.y;
  }
}

template <unsigned kValues>
__device__ void store_sums(std::uint64_t* to, const std::uint64_t* sums) {
  for (unsigned i = 0; i < kValues; i += 2) store_aligned(to + i, ulonglong2{sums[i], sums[i + 1]});
}

// --- kernels -----------------------------------------------------------------------------

template <class Codes>
__device__ bool add_updates(const WindowSum& job, std::size_t at, unsigned scale_shift,
                            std::uint64_t* sums) {
  const WindowTerm* const term = job.term + at / kTileValues * job.updates;
  const auto within_tile = static_cast<unsigned>(at % kTileValues);
  bool within = true;
  VS_UNROLL(4)  // so many are asked for before the first is waited for
  for (std::size_t k = 0; k < job.updates; ++k) {
    const Piece piece = {term + k, within_tile, scale_shift, job.scale_format};
    within &= Codes::add(piece, sums);
  }
  return within;
}

template <class Codes, bool kMeans>
__global__ void __launch_bounds__(kThreads, Codes::kBlocks)
    sum_kernel(WindowSum job, unsigned scale_shift, MeanSinkArgs sink) {
  constexpr unsigned kValues = Codes::kValues;
  const std::size_t count = job.tiles * kTileValues;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x * kValues;
  std::size_t at = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * kValues;
  for (; at < count; at += stride) {
    std::uint64_t sums[kValues] = {};
    if (!job.first) load_sums<kValues>(job.sums + at, sums);
    if (!add_updates<Codes>(job, at, scale_shift, sums)) atomicMax(job.beyond, 1u);
    if constexpr (kMeans)
      write_means<kValues>(sink, at, sums);
    else
      store_sums<kValues>(job.sums + at, sums);
  }
}

__global__ void __launch_bounds__(kThreads)
    mean_kernel(std::size_t count, const std::uint64_t* sums, MeanSinkArgs sink) {
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x * kMeanValues;
  std::size_t at = (std::size_t{blockIdx.x} * blockDim.x + threadIdx.x) * kMeanValues;
  for (; at < count; at += stride) {
    std::uint64_t held[kMeanValues];
    load_sums<kMeanValues>(sums + at, held);
    write_means<kMeanValues>(sink, at, held);
  }
}

// --- launchers -------------------------------------------------------------------------------

template <class Codes, bool kMeans>
int launch_sum(const Launch& launch, const WindowSum& sum, const MeanSinkArgs& sink) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t pieces = sum.tiles * kTileValues / Codes::kValues;
  const unsigned blocks = choose_blocks(launch, (pieces + threads - 1) / threads, kMostBlocks);
  const unsigned shift = scale_shift_of(sum.scale_block);
  return launch_kernel("sum_kernel", launch, blocks, threads,
                       kMeans ? mean_shared_bytes<Codes::kValues>(threads) : 0,
                       sum_kernel<Codes, kMeans>, sum, shift, sink);
}

using SumLauncher = int (*)(const Launch&, const WindowSum&, const MeanSinkArgs&);

// In the order of WindowCodes.
template <bool kMeans>
constexpr SumLauncher kSumLaunchers[kWindowCodes] = {
    launch_sum<FloatCodes, kMeans>,
    launch_sum<DoubleCodes, kMeans>,
    launch_sum<HalfCodes<WidenHalf>, kMeans>,
    launch_sum<HalfCodes<WidenBrain>, kMeans>,
    launch_sum<Int8Codes, kMeans>,
    launch_sum<UnitNibbles<Int4Unit>, kMeans>,
    launch_sum<Nf4Codes, kMeans>,
    launch_sum<UnitNibbles<Fp4Unit>, kMeans>,
    launch_sum<Fp8Codes<E4M3>, kMeans>,
    launch_sum<Fp8Codes<E5M2>, kMeans>,
    launch_sum<SignCodes, kMeans>,
};

int sum_window(const Launch& launch, const WindowSum& sum) {
  return kSumLaunchers<false>[static_cast<std::size_t>(sum.kind)](launch, sum, {});
}

int mean_window(const Launch& launch, const WindowSum& sum, const WindowMeans& means) {
  return kSumLaunchers<true>[static_cast<std::size_t>(sum.kind)](launch, sum, sink_args(means));
}

int take_means(const Launch& launch, const WindowMeans& means) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t count = means.tiles * kTileValues;
  const unsigned blocks =
      choose_blocks(launch, (count / kMeanValues + threads - 1) / threads, kMostBlocks);
  return launch_kernel("mean_kernel", launch, blocks, threads, 0, mean_kernel, count, means.sums,
                       sink_args(means));
}

}  // namespace

extern const MeanLaunchers VS_DEVICE_TABLE(mean);
const MeanLaunchers VS_DEVICE_TABLE(mean) = {sum_window, take_means, mean_window};

}  // namespace veilsum
