#include "optimize/server_step.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/float_environment.h"
#include "base/parallel.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

struct Kind {
  std::string_view name;
  bool first;
  bool second;
};

// In the order of OptimizerKind.
constexpr std::array<Kind, kOptimizerKinds> kKinds = {{
    {"fedavg", FedAvgStep::kFirst, FedAvgStep::kSecond},
    {"fedavgm", FedAvgMStep::kFirst, FedAvgMStep::kSecond},
    {"fedadagrad", FedAdagradStep::kFirst, FedAdagradStep::kSecond},
    {"fedadam", FedAdamStep::kFirst, FedAdamStep::kSecond},
    {"fedyogi", FedYogiStep::kFirst, FedYogiStep::kSecond},
}};

const Kind& facts(OptimizerKind kind) { return kKinds[static_cast<std::size_t>(kind)]; }

// Values stepped at a time: what a piece touches stays in the second-level cache, so that
// looking for values that do not fit costs no second trip to memory.
constexpr std::size_t kPiece = 4096;
// What a thread takes at a time.
constexpr std::size_t kRange = 16 * kPiece;

constexpr std::uint32_t kInfinity32 = 0x7F800000;
constexpr std::uint64_t kInfinity64 = 0x7FF0000000000000;

[[noreturn]] void does_not_fit(const Tensor& tensor) {
  throw ConfigError("the new values of tensor '" + tensor.name + "' do not fit " +
                        std::string(dtype_name(tensor.dtype)),
                    "lower the server's learning rate or the sites' learning_rate");
}

// Null stays null: there is no such moment.
template <class T>
typename Wire<T>::Value* values_at(std::byte* tensor, std::uint64_t element) {
  if (tensor == nullptr) return nullptr;
  return reinterpret_cast<typename Wire<T>::Value*>(tensor + element * sizeof(T));
}
template <class T>
const typename Wire<T>::Value* values_at(const std::byte* tensor, std::uint64_t element) {
  return reinterpret_cast<const typename Wire<T>::Value*>(tensor + element * sizeof(T));
}

template <class T>
bool all_finite(const typename Wire<T>::Value* values, std::size_t count) {
  if (values == nullptr) return true;
  if constexpr (sizeof(T) == 4)
    return kernels().codec.max_abs32(values, count) < kInfinity32;
  else
    return kernels().codec.max_abs64(values, count) < kInfinity64;
}

template <class T>
bool moments_finite(const OptimizerArrays<T>& arrays) {
  return all_finite<T>(arrays.first, arrays.count) && all_finite<T>(arrays.second, arrays.count);
}

template <class T>
bool add_to(const std::byte* old, const std::byte* mean, std::size_t count, std::byte* updated) {
  bool fits = true;
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    T change;
    std::memcpy(&value, old + i * sizeof value, sizeof value);
    std::memcpy(&change, mean + i * sizeof change, sizeof change);
    fits &= !__builtin_add_overflow(value, change, &value);
    std::memcpy(updated + i * sizeof value, &value, sizeof value);
  }
  return fits;
}

bool add_integers(DType dtype, const std::byte* old, const std::byte* mean, std::size_t count,
                  std::byte* updated) {
  switch (dtype) {
    case DType::i8:
      return add_to<std::int8_t>(old, mean, count, updated);
    case DType::i16:
      return add_to<std::int16_t>(old, mean, count, updated);
    case DType::i32:
      return add_to<std::int32_t>(old, mean, count, updated);
    case DType::u8:
      return add_to<std::uint8_t>(old, mean, count, updated);
    case DType::u16:
      return add_to<std::uint16_t>(old, mean, count, updated);
    case DType::u32:
      return add_to<std::uint32_t>(old, mean, count, updated);
    case DType::u64:
      return add_to<std::uint64_t>(old, mean, count, updated);
    default:
      return add_to<std::int64_t>(old, mean, count, updated);
  }
}

// `count` values of a part, `done` values in.
template <class T>
OptimizerArrays<T> arrays_of(const StepTensors& tensors, const TensorPart& part, std::size_t done,
                             const std::byte* mean, std::size_t count) {
  const std::uint64_t first = part.element + done;
  return {
      values_at<T>(tensors.model[part.tensor], first),
      values_at<T>(mean, done),
      values_at<T>(tensors.first[part.tensor], first),
      values_at<T>(tensors.second[part.tensor], first),
      values_at<T>(tensors.updated[part.tensor], first),
      count,
  };
}

}  // namespace

OptimizerKind optimizer_kind(std::string_view name) {
  std::string known;
  for (std::size_t i = 0; i < kKinds.size(); ++i) {
    if (kKinds[i].name == name) return static_cast<OptimizerKind>(i);
    known += (known.empty() ? "" : ", ") + std::string(kKinds[i].name);
  }
  throw ConfigError("unknown optimizer '" + std::string(name) + "'", "known: " + known);
}

bool has_first_moment(OptimizerKind kind) { return facts(kind).first; }
bool has_second_moment(OptimizerKind kind) { return facts(kind).second; }

DType moment_dtype(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

ServerStep::ServerStep(const Layout& layout, OptimizerKind kind, const OptimizerSettings& settings,
                       const StepTensors& tensors, const StepResidence& resident)
    : layout_(layout),
      kind_(kind),
      rule_{settings.learning_rate, settings.gain,      settings.beta1, 1 - settings.beta1,
            settings.beta2,         1 - settings.beta2, settings.tau},
      tensors_(tensors),
      resident_(resident) {}

void ServerStep::refuse(std::size_t tensor) const { does_not_fit(layout_.tensors()[tensor]); }

void ServerStep::apply(const TensorPart& part, const std::byte* mean) const {
  const DType dtype = layout_.tensors()[part.tensor].dtype;
  if (resident_.any() && is_floating(dtype))
    throw ConfigError("the model or its moments lie on a device, and this step is made on the host",
                      "step by an aggregator with that device as its backend");
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
      return apply_halves(part, mean);
    case DType::f32:
      return apply_floats(part, mean);
    case DType::f64:
      return apply_doubles(part, mean);
    default:
      return apply_integers(part, mean);
  }
}

void ServerStep::apply_floats(const TensorPart& part, const std::byte* mean) const {
  const auto step = kernels().optimizer.step_f32[static_cast<std::size_t>(kind_)];
  for (std::size_t done = 0; done < part.count; done += kPiece) {
    const auto arrays =
        arrays_of<float>(tensors_, part, done, mean, std::min(kPiece, part.count - done));
    step(arrays, rule_);
    if (!all_finite<float>(arrays.updated, arrays.count) || !moments_finite(arrays))
      does_not_fit(layout_.tensors()[part.tensor]);
  }
}

void ServerStep::apply_doubles(const TensorPart& part, const std::byte* mean) const {
  const auto step = kernels().optimizer.step_f64[static_cast<std::size_t>(kind_)];
  for (std::size_t done = 0; done < part.count; done += kPiece) {
    const auto arrays =
        arrays_of<double>(tensors_, part, done, mean, std::min(kPiece, part.count - done));
    step(arrays, rule_);
    if (!all_finite<double>(arrays.updated, arrays.count) || !moments_finite(arrays))
      does_not_fit(layout_.tensors()[part.tensor]);
  }
}

// Sixteen-bit tensors are stepped as floats; only their moments are floats in memory.
void ServerStep::apply_halves(const TensorPart& part, const std::byte* mean) const {
  const CodecKernels& codec = kernels().codec;
  const Tensor& tensor = layout_.tensors()[part.tensor];
  const bool brain = tensor.dtype == DType::bf16;
  const auto widen = brain ? codec.widen_bf16 : codec.widen_f16;
  const auto narrow = brain ? codec.narrow_bf16 : codec.narrow_f16;
  const auto step = kernels().optimizer.step_odd[static_cast<std::size_t>(kind_)];
  std::array<float, kPiece> model;
  std::array<float, kPiece> change;
  for (std::size_t done = 0; done < part.count; done += kPiece) {
    const std::size_t count = std::min(kPiece, part.count - done);
    const std::uint64_t first = part.element + done;
    auto* updated = reinterpret_cast<WireHalf*>(tensors_.updated[part.tensor] + first * 2);
    widen(reinterpret_cast<const WireHalf*>(tensors_.model[part.tensor] + first * 2), count,
          model.data());
    widen(reinterpret_cast<const WireHalf*>(mean + done * 2), count, change.data());
    const OptimizerArrays<float> arrays = {
        model.data(),
        change.data(),
        values_at<float>(tensors_.first[part.tensor], first),
        values_at<float>(tensors_.second[part.tensor], first),
        model.data(),
        count,
    };
    step(arrays, rule_);
    narrow(model.data(), count, updated);
    widen(updated, count, model.data());
    if (!all_finite<float>(model.data(), count) || !moments_finite(arrays)) does_not_fit(tensor);
  }
}

void ServerStep::apply_integers(const TensorPart& part, const std::byte* mean) const {
  const Tensor& tensor = layout_.tensors()[part.tensor];
  const std::uint64_t place = part.element * dtype_size(tensor.dtype);
  if (!add_integers(tensor.dtype, tensors_.model[part.tensor] + place, mean, part.count,
                    tensors_.updated[part.tensor] + place))
    does_not_fit(tensor);
}

void step_model(const ServerStep& step, TensorData mean, unsigned threads) {
  const FloatEnvironment exact;
  const Layout& layout = step.layout();
  for (const int group : {kFloatGroup, kIntegerGroup})
    parallel_for(layout.group_size(group), kRange, threads, [&](const Range& range) {
      for_each_part(layout, group, range.begin, range.end - range.begin,
                    [&](const TensorPart& part) {
                      const std::size_t size = dtype_size(layout.tensors()[part.tensor].dtype);
                      step.apply(part, mean[part.tensor] + part.element * size);
                    });
    });
}

}  // namespace veilsum
