// The exact mean: every thread takes a few consecutive coordinates, walks over all updates with
// their sums in registers, and ends with the sums or with the means.
#include <type_traits>

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
//
// Terms are cheaper to make a constant too large: of rounding there is a bias, of codes an excess
// that makes them positive. What each of the sums got too much is counted in `surplus`, once for
// all of them, and is taken off in the end. Everything is modulo 2^64.

struct Piece {
  unsigned at;
  unsigned scale_shift;
  WindowScales scale_format;
};

struct Sums {
  std::uint64_t* sum;
  std::uint64_t surplus;
};

// In two loads.
__device__ __forceinline__ WindowTerm load_term(const WindowTerm* place) {
  struct alignas(16) Half {
    std::uint64_t word[2];
  };
  const Half places = load_aligned<Half>(place);
  const Half numbers = load_aligned<Half>(reinterpret_cast<const unsigned char*>(place) + 16);
  return {reinterpret_cast<const unsigned char*>(places.word[0]),
          reinterpret_cast<const unsigned char*>(places.word[1]), double_of_bits(numbers.word[0]),
          numbers.word[1]};
}

// The word that a scale is in, or half of: a tile's scales are whole words. No branch.
__device__ __forceinline__ float scale_in_word(const WindowTerm& term, WindowScales format,
                                               unsigned number) {
  const bool wide = format == WindowScales::f32;
  const std::uint32_t word =
      load_global<std::uint32_t>(term.scales + (wide ? 4 * number : 2 * (number & ~1u)));
  const float half = widen_half(static_cast<std::uint16_t>(word >> 16 * (number & 1)));
  return wide ? float_of_bits(word) : half;
}

__device__ __forceinline__ float scale_of(const WindowTerm& term, const Piece& piece) {
  if (piece.scale_format == WindowScales::none) return 1;
  return scale_in_word(term, piece.scale_format, piece.at >> piece.scale_shift);
}

__device__ __forceinline__ void add_rounded(double value, std::uint64_t& sum) {
  sum += biased_fixed_point(value);
}

// Not of a NaN either.
__device__ __forceinline__ bool is_within(float value, const WindowTerm& term) {
  return __builtin_fabsf(value) <= float_of_bits(static_cast<std::uint32_t>(term.limit));
}

// Both formats are halves with fewer bits, and devices have that conversion from sm_89 on.
template <class Format>
__device__ __forceinline__ float2 widen_fp8_pair(std::uint16_t pair) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint32_t halves;
  if constexpr (Format::kMantissa == 3)
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  else
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return {widen_half(static_cast<std::uint16_t>(halves)),
          widen_half(static_cast<std::uint16_t>(halves >> 16))};
#else
  return {widen_fp8<Format>(static_cast<std::uint8_t>(pair)),
          widen_fp8<Format>(static_cast<std::uint8_t>(pair >> 8))};
#endif
}

struct FloatCodes {
  static constexpr unsigned kValues = 4;
  [[maybe_unused]] static constexpr unsigned kBlocks = 4;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const float4 four = load_once<float4>(term.codes + 4 * piece.at);
    const float values[] = {four.x, four.y, four.z, four.w};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      within &= is_within(values[i], term);
      add_rounded(static_cast<double>(values[i]) * term.factor, sums.sum[i]);
    }
    sums.surplus += kFixedPointBias;
    return within;
  }
};

struct DoubleCodes {
  static constexpr unsigned kValues = 2;
  [[maybe_unused]] static constexpr unsigned kBlocks = 4;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const double2 two = load_once<double2>(term.codes + 8 * piece.at);
    const double values[] = {two.x, two.y};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      within &= __builtin_fabs(values[i]) <= double_of_bits(term.limit);
      add_rounded(values[i] * term.factor, sums.sum[i]);
    }
    sums.surplus += kFixedPointBias;
    return within;
  }
};

template <class Widen>
struct HalfCodes {
  static constexpr unsigned kValues = 8;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const uint4 eight = load_once<uint4>(term.codes + 2 * piece.at);
    const std::uint32_t words[] = {eight.x, eight.y, eight.z, eight.w};
    bool within = true;
    for (unsigned i = 0; i < kValues; ++i) {
      const auto pattern = static_cast<std::uint16_t>(words[i / 2] >> 16 * (i % 2));
      const float value = Widen::widen(pattern);
      within &= is_within(value, term);
      add_rounded(static_cast<double>(value) * term.factor, sums.sum[i]);
    }
    sums.surplus += kFixedPointBias;
    return within;
  }
};

// --- codes that are multiples of a unit: one rounding per block

__device__ __forceinline__ std::uint64_t unit_of(double unit, const WindowTerm& term,
                                                 const Piece& piece) {
  return bounded_fixed_point(unit * scale_of(term, piece) * term.factor);
}

// Adds each of four bytes times the unit, to sums that are kApart from each other.
template <unsigned kApart>
__device__ __forceinline__ void add_bytes(std::uint32_t bytes, std::uint64_t unit,
                                          std::uint64_t* sums) {
  VS_UNROLL(4)
  for (unsigned i = 0; i < 4; ++i)
    sums[kApart * i] += std::uint64_t{permute_bytes(bytes, 0, 0x4440u | i)} * unit;
}

struct Int8Codes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const uint4 sixteen = load_once<uint4>(term.codes + piece.at);
    const std::uint32_t words[] = {sixteen.x, sixteen.y, sixteen.z, sixteen.w};
    const std::uint64_t unit = unit_of(1, term, piece);
    VS_UNROLL(4)
    for (unsigned i = 0; i < 4; ++i) add_bytes<1>(words[i] ^ 0x80808080u, unit, sums.sum + 4 * i);
    sums.surplus += 128 * unit;
    return true;
  }
};

// Two's complement, with its highest bit turned over.
struct Int4Codes {
  static constexpr double kUnit = 1;
  static constexpr unsigned kExcess = 8;
  __device__ static void add(std::uint32_t eight, std::uint64_t unit, std::uint64_t* sums) {
    const std::uint32_t positive = eight ^ 0x88888888u;
    add_bytes<2>(positive & 0x0F0F0F0Fu, unit, sums);
    add_bytes<2>(positive >> 4 & 0x0F0F0F0Fu, unit, sums + 1);
  }
};

// Magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 in halves, and a sign. A code is itself the selector of
// its magnitude; one with the fourth bit, which is the sign, selects 0.
struct Fp4Codes {
  static constexpr double kUnit = 0.5;
  static constexpr unsigned kExcess = 12;
  __device__ static std::uint32_t magnitudes(std::uint32_t four) {
    return permute_bytes(0x03020100u, 0x0C080604u, four);
  }
  __device__ static void add(std::uint32_t eight, std::uint64_t unit, std::uint64_t* sums) {
    const std::uint32_t negated = eight ^ 0x88888888u;
    VS_UNROLL(2)
    for (unsigned half = 0; half < 2; ++half) {
      const std::uint32_t bytes =
          0x0C0C0C0Cu + magnitudes(eight >> 16 * half) - magnitudes(negated >> 16 * half);
      add_bytes<1>(bytes, unit, sums + 4 * half);
    }
  }
};

template <class Codes>
struct UnitNibbles {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const uint2 sixteen = load_once<uint2>(term.codes + piece.at / 2);
    const std::uint64_t unit = unit_of(Codes::kUnit, term, piece);
    Codes::add(sixteen.x, unit, sums.sum);
    Codes::add(sixteen.y, unit, sums.sum + 8);
    sums.surplus += Codes::kExcess * unit;
    return true;
  }
};

struct SignCodes {
  static constexpr unsigned kValues = 16;
  [[maybe_unused]] static constexpr unsigned kBlocks = 2;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const unsigned bits = load_once<std::uint16_t>(term.codes + piece.at / 8);
    const std::uint64_t unit = unit_of(1, term, piece);
    const std::uint64_t both = 2 * unit;
    VS_UNROLL(16)
    for (unsigned i = 0; i < kValues; ++i)
      if ((bits >> i & 1) != 0) sums.sum[i] -= both;
    sums.surplus -= unit;
    return true;
  }
};

// --- codes whose terms are rounded one by one

__constant__ CodeTable kNf4 = kNf4Table;

// No unit divides its values. The sixteen terms of a block of scales are made by sixteen lanes, one
// each, and every lane fetches those that its codes stand for.
template <unsigned kScaleBlock>
struct Nf4Codes {
  static constexpr unsigned kValues = kScaleBlock / kTableCodes;
  [[maybe_unused]] static constexpr unsigned kBlocks = 4;
  using Packed = std::conditional_t<kValues == 4, std::uint16_t, std::uint8_t>;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const unsigned codes = load_once<Packed>(term.codes + piece.at / 2);
    const double scale = scale_in_word(term, piece.scale_format, piece.at / kScaleBlock);
    const double value = kNf4.value[threadIdx.x % kTableCodes];
    const std::uint64_t of_lane = bounded_fixed_point(value * scale * term.factor);
    VS_UNROLL(4)
    for (unsigned i = 0; i < kValues; ++i)
      sums.sum[i] += __shfl_sync(0xFFFFFFFFu, of_lane, codes >> 4 * i & 15, kTableCodes);
    return true;
  }
};

// Values are products of a code and a scale, rounded to float.
template <class Format>
struct Fp8Codes {
  static constexpr unsigned kValues = 8;
  [[maybe_unused]] static constexpr unsigned kBlocks = 3;
  __device__ static bool add(const WindowTerm& term, const Piece& piece, Sums& sums) {
    const uint2 eight = load_once<uint2>(term.codes + piece.at);
    const std::uint32_t words[] = {eight.x, eight.y};
    const float scale = scale_of(term, piece);
    VS_UNROLL(4)
    for (unsigned i = 0; i < kValues; i += 2) {
      const auto pair = static_cast<std::uint16_t>(words[i / 4] >> 8 * (i % 4));
      const float2 values = widen_fp8_pair<Format>(pair);
      add_rounded(static_cast<double>(values.x * scale) * term.factor, sums.sum[i]);
      add_rounded(static_cast<double>(values.y * scale) * term.factor, sums.sum[i + 1]);
    }
    sums.surplus += kFixedPointBias;
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
  const Piece piece = {static_cast<unsigned>(at % kTileValues), scale_shift, job.scale_format};
  const WindowTerm* term = job.term + at / kTileValues * job.updates;
  const WindowTerm* const end = term + job.updates;
  Sums all = {sums, 0};
  bool within = true;
  VS_UNROLL(4)  // so many are asked for before the first is waited for
  for (; term != end; ++term) within &= Codes::add(load_term(term), piece, all);
  for (unsigned i = 0; i < Codes::kValues; ++i) sums[i] -= all.surplus;
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

template <bool kMeans>
int launch_nf4(const Launch& launch, const WindowSum& sum, const MeanSinkArgs& sink) {
  return sum.scale_block == 32 ? launch_sum<Nf4Codes<32>, kMeans>(launch, sum, sink)
                               : launch_sum<Nf4Codes<64>, kMeans>(launch, sum, sink);
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
    launch_sum<UnitNibbles<Int4Codes>, kMeans>,
    launch_nf4<kMeans>,
    launch_sum<UnitNibbles<Fp4Codes>, kMeans>,
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
