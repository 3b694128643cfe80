// Steps of the server optimizers, behind the kernels of the mean and on their stream.
//
// Why apart. As the end of the mean's kernels a step fits: with FedAdam on floats none of the
// eleven took more registers, none spilled. But each grew by 10 KB of machine code, and there are
// five optimizers, two widths of moments and three formats of values. Apart it is five kernels, for
// all codecs, and what it costs is that means are written and read once more: 8 of the 32 bytes of
// device memory per float that FedAdam moves. Where state comes over the bus, that is nothing.
//
// A thread takes one coordinate, so that neighbours load neighbours whatever a tensor's address is
// a multiple of. The four arrays are asked for at once, and memory, not the arithmetic of doubles,
// is what is waited for.
#include "device.h"
#include "device/step_launchers.h"
#include "element/fixed_point.h"
#include "element/half.h"
#include "element/quotient.h"

namespace veilsum {
namespace {

constexpr unsigned kTileValues = 4096;
constexpr unsigned kPartBlock = 64;
constexpr unsigned kThreads = 256;
constexpr std::size_t kMostBlocks = 4096;

// --- formats -----------------------------------------------------------------------------------

// Each loads and stores element i of a tensor, and says whether what it stored is finite.

VS_FN bool is_finite(float value) { return (bits_of_float(value) & 0x7FFFFFFFu) < 0x7F800000u; }
VS_FN bool is_finite(double value) {
  return (bits_of_double(value) & kMagnitude) < 0x7FF0000000000000u;
}

struct DoubleValues {
  using Moment = double;
  __device__ static double load(const unsigned char* from, std::uint32_t i) {
    return load_global<double>(from + 8 * std::size_t{i});
  }
  __device__ static bool store(unsigned char* to, std::uint32_t i, double value) {
    store_aligned(to + 8 * std::size_t{i}, value);
    return is_finite(value);
  }
};

struct FloatValues {
  using Moment = float;
  __device__ static double load(const unsigned char* from, std::uint32_t i) {
    return load_global<float>(from + 4 * std::size_t{i});
  }
  __device__ static bool store(unsigned char* to, std::uint32_t i, double value) {
    const float narrow = ToNearest::narrow(value);
    store_aligned(to + 4 * std::size_t{i}, narrow);
    return is_finite(narrow);
  }
};

struct HalfPatterns {
  VS_FN float widen(std::uint16_t pattern) { return widen_half(pattern); }
  VS_FN std::uint16_t narrow(float value) { return narrow_half(value); }
};
struct BrainPatterns {
  VS_FN float widen(std::uint16_t pattern) { return widen_brain(pattern); }
  VS_FN std::uint16_t narrow(float value) { return narrow_brain(value); }
};

template <class Patterns>
struct ShortValues {
  using Moment = float;
  __device__ static double load(const unsigned char* from, std::uint32_t i) {
    return Patterns::widen(load_global<std::uint16_t>(from + 2 * std::size_t{i}));
  }
  __device__ static bool store(unsigned char* to, std::uint32_t i, double value) {
    const std::uint16_t pattern = Patterns::narrow(ToOdd::narrow(value));
    store_aligned(to + 2 * std::size_t{i}, pattern);
    return is_finite(Patterns::widen(pattern));
  }
};

// --- one coordinate ------------------------------------------------------------------------------

template <class T>
__device__ T load_moment(const unsigned char* from, std::uint32_t i) {
  return load_global<T>(from + sizeof(T) * i);
}
template <class T>
__device__ bool store_moment(unsigned char* to, std::uint32_t i, T value) {
  store_aligned(to + sizeof(T) * i, value);
  return is_finite(value);
}

// Whether everything new fits. The mean is a number of the tensor's format.
template <class Step, class Values>
__device__ bool step_value(const StepPart& part, std::uint32_t i, double mean,
                           const OptimizerRule& rule) {
  using Moment = typename Values::Moment;
  Moments<Moment> moments = {0, 0};
  if constexpr (Step::kFirst) moments.first = load_moment<Moment>(part.first, i);
  if constexpr (Step::kSecond) moments.second = load_moment<Moment>(part.second, i);
  const double updated = stepped_value<Step>(Values::load(part.model, i), mean, moments, rule);
  bool fits = Values::store(part.updated, i, updated);
  if constexpr (Step::kFirst) fits &= store_moment(part.first, i, moments.first);
  if constexpr (Step::kSecond) fits &= store_moment(part.second, i, moments.second);
  return fits;
}

// All threads of a warp have the same part, or none.
template <class Step>
__device__ bool step_element(const StepPart& part, std::uint32_t i, double mean,
                             const OptimizerRule& rule) {
  switch (part.format) {
    case MeanFormat::f64:
      return step_value<Step, DoubleValues>(part, i, mean, rule);
    case MeanFormat::f16:
      return step_value<Step, ShortValues<HalfPatterns>>(part, i, mean, rule);
    case MeanFormat::bf16:
      return step_value<Step, ShortValues<BrainPatterns>>(part, i, mean, rule);
    default:
      return step_value<Step, FloatValues>(part, i, mean, rule);
  }
}

__device__ __forceinline__ double mean_at(const WindowStep& job, std::size_t at) {
  return job.wide ? static_cast<const double*>(job.means)[at]
                  : static_cast<double>(static_cast<const float*>(job.means)[at]);
}

template <class Step>
__global__ void __launch_bounds__(kThreads) step_kernel(WindowStep job) {
  const std::size_t count = job.tiles * kTileValues;
  const std::size_t stride = std::size_t{gridDim.x} * blockDim.x;
  std::size_t at = std::size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; at < count; at += stride) {
    const std::uint32_t number = job.part_of[at / kPartBlock];
    if (number == kNoPart) continue;
    const StepPart& part = job.part[number];
    const std::uint32_t i = static_cast<std::uint32_t>(at) - part.offset;
    if (i >= part.count) continue;
    if (!step_element<Step>(part, i, mean_at(job, at), job.rule))
      atomicMax(job.unfit, job.parts - number);
  }
}

// --- launchers -----------------------------------------------------------------------------------

template <class Step>
int launch_step(const Launch& launch, const WindowStep& step) {
  const unsigned threads = choose_threads(launch, kThreads);
  const std::size_t count = step.tiles * kTileValues;
  const unsigned blocks = choose_blocks(launch, (count + threads - 1) / threads, kMostBlocks);
  return launch_kernel("step_kernel", launch, blocks, threads, 0, step_kernel<Step>, step);
}

using StepLauncher = int (*)(const Launch&, const WindowStep&);

// In the order of OptimizerKind.
constexpr StepLauncher kStepLaunchers[kOptimizerKinds] = {
    launch_step<FedAvgStep>,  launch_step<FedAvgMStep>, launch_step<FedAdagradStep>,
    launch_step<FedAdamStep>, launch_step<FedYogiStep>,
};

int step_window(const Launch& launch, const WindowStep& step) {
  return kStepLaunchers[static_cast<std::size_t>(step.kind)](launch, step);
}

}  // namespace

extern const StepLaunchers VS_DEVICE_TABLE(step);
const StepLaunchers VS_DEVICE_TABLE(step) = {step_window};

}  // namespace veilsum
