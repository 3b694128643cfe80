#include "codec/gather.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "element/half.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

template <class T>
T load(const std::byte* bytes, std::size_t i) {
  T value;
  std::memcpy(&value, bytes + i * sizeof value, sizeof value);
  return value;
}

template <class T>
void store(std::byte* bytes, std::size_t i, T value) {
  std::memcpy(bytes + i * sizeof value, &value, sizeof value);
}

const WireHalf* halves(const std::byte* bytes) { return reinterpret_cast<const WireHalf*>(bytes); }

float narrow(double value, Narrowing narrowing) {
  const auto nearest = static_cast<float>(value);
  if (narrowing == Narrowing::nearest || static_cast<double>(nearest) == value ||
      !std::isfinite(value))
    return nearest;
  // Of the two neighbours the one whose pattern is odd; magnitudes order like patterns.
  const std::uint32_t bits = bits_of_float(nearest);
  if (bits & 1) return nearest;
  return float_of_bits(std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? bits - 1
                                                                                  : bits + 1);
}

// --- tensors -> grid -----------------------------------------------------------

void read_floats(DType dtype, const std::byte* from, Narrowing narrowing, std::span<float> out) {
  switch (dtype) {
    case DType::f16:
      return kernels().codec.widen_f16(halves(from), out.size(), out.data());
    case DType::bf16:
      return kernels().codec.widen_bf16(halves(from), out.size(), out.data());
    case DType::f32:
      std::memcpy(out.data(), from, out.size_bytes());
      return;
    default:
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = narrow(load<double>(from, i), narrowing);
  }
}

template <class T>
void read_as(const std::byte* from, std::span<std::int64_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::int64_t>(load<T>(from, i));
}

// Calls `use` with a null pointer to the C++ type of an integer dtype.
template <class Use>
void with_integer_type(DType dtype, Use&& use) {
  switch (dtype) {
    case DType::i8:
      return use(static_cast<std::int8_t*>(nullptr));
    case DType::i16:
      return use(static_cast<std::int16_t*>(nullptr));
    case DType::i32:
      return use(static_cast<std::int32_t*>(nullptr));
    case DType::u8:
      return use(static_cast<std::uint8_t*>(nullptr));
    case DType::u16:
      return use(static_cast<std::uint16_t*>(nullptr));
    case DType::u32:
      return use(static_cast<std::uint32_t*>(nullptr));
    case DType::u64:
      return use(static_cast<std::uint64_t*>(nullptr));
    default:
      return use(static_cast<std::int64_t*>(nullptr));
  }
}

void read_integers(const Tensor& tensor, const std::byte* from, std::span<std::int64_t> out) {
  with_integer_type(tensor.dtype, [&]<class T>(T*) { read_as<T>(from, out); });
  if (tensor.dtype != DType::u64) return;
  for (const std::int64_t value : out)
    if (value < 0)
      throw ConfigError("tensor '" + tensor.name + "' has a value above 2**63-1",
                        "averages of integers are computed in signed 64 bits");
}

// Calls `read` for the parts of the range and zeroes what lies between them.
template <class T, class Read>
void gather_parts(const Layout& layout, int group, TensorData tensors, std::uint64_t first,
                  std::span<T> out, const Read& read) {
  std::size_t end = 0;  // of the part before
  for_each_part(layout, group, first, out.size(), [&](const TensorPart& part) {
    std::fill(out.begin() + end, out.begin() + part.offset, T{0});
    const Tensor& tensor = layout.tensors()[part.tensor];
    read(tensor, tensors[part.tensor] + part.element * dtype_size(tensor.dtype),
         out.subspan(part.offset, part.count));
    end = part.offset + part.count;
  });
  std::fill(out.begin() + end, out.end(), T{0});
}

// --- grid -> tensors -----------------------------------------------------------

[[noreturn]] void does_not_fit(const Tensor& tensor) {
  throw DecodeError("a value of tensor '" + tensor.name + "' does not fit " +
                    std::string(dtype_name(tensor.dtype)));
}

void write_halves(const Tensor& tensor, std::span<const float> values, std::byte* to) {
  auto* out = reinterpret_cast<WireHalf*>(to);
  kernels().codec.narrow_f16(values.data(), values.size(), out);
  for (std::size_t i = 0; i < values.size(); ++i)
    if ((out[i] & 0x7C00) == 0x7C00) does_not_fit(tensor);
}

// bf16 tensors hold floats here; a float that is no bf16 value stays as the codec gave it.
std::size_t decoded_size(DType dtype) { return dtype == DType::bf16 ? 4 : dtype_size(dtype); }

void write_floats(const Tensor& tensor, std::span<const float> values, std::byte* to) {
  switch (tensor.dtype) {
    case DType::f16:
      return write_halves(tensor, values, to);
    case DType::f64:
      for (std::size_t i = 0; i < values.size(); ++i) store(to, i, static_cast<double>(values[i]));
      return;
    default:
      std::memcpy(to, values.data(), values.size_bytes());
  }
}

void write_integers(const Tensor& tensor, std::span<const std::int64_t> values, std::byte* to) {
  with_integer_type(tensor.dtype, [&]<class T>(T*) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (!std::in_range<T>(values[i])) does_not_fit(tensor);
      store(to, i, static_cast<T>(values[i]));
    }
  });
}

template <class T, class Write>
void scatter_parts(const Layout& layout, int group, std::span<const T> values, std::uint64_t first,
                   MutableTensorData tensors, const Write& write) {
  for_each_part(layout, group, first, values.size(), [&](const TensorPart& part) {
    const Tensor& tensor = layout.tensors()[part.tensor];
    write(tensor, values.subspan(part.offset, part.count),
          tensors[part.tensor] + part.element * decoded_size(tensor.dtype));
  });
}

template <class T>
void check_gap(std::span<const T> values, std::uint64_t first) {
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] != 0)
      throw DecodeError("coordinate " + std::to_string(first + i) +
                        " lies between tensors and is not zero");
}

template <class T>
void check_all_gaps(const Layout& layout, int group, std::span<const T> values,
                    std::uint64_t first) {
  for_each_gap(layout, group, first, values.size(), [&](std::size_t offset, std::size_t count) {
    check_gap(values.subspan(offset, count), first + offset);
  });
}

}  // namespace

void widen(DType dtype, const std::byte* values, std::span<double> out) {
  switch (dtype) {
    case DType::f16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = widen_half(halves(values)[i]);
      return;
    case DType::bf16:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = widen_brain(halves(values)[i]);
      return;
    case DType::f32:
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = load<float>(values, i);
      return;
    default:
      std::memcpy(out.data(), values, out.size_bytes());
  }
}

void gather(const Layout& layout, TensorData tensors, std::uint64_t first, Narrowing narrowing,
            std::span<float> out) {
  gather_parts(layout, kFloatGroup, tensors, first, out,
               [&](const Tensor& tensor, const std::byte* from, std::span<float> part) {
                 read_floats(tensor.dtype, from, narrowing, part);
               });
}

const float* floats_in_place(const Layout& layout, TensorData tensors, std::uint64_t first,
                             std::size_t count) {
  const std::byte* found = nullptr;
  for_each_part(layout, kFloatGroup, first, count, [&](const TensorPart& part) {
    if (part.count == count && layout.tensors()[part.tensor].dtype == DType::f32)
      found = tensors[part.tensor] + part.element * sizeof(float);
  });
  const bool aligned = reinterpret_cast<std::uintptr_t>(found) % alignof(float) == 0;
  return aligned ? reinterpret_cast<const float*>(found) : nullptr;
}

void gather(const Layout& layout, TensorData tensors, std::uint64_t first, std::span<double> out) {
  gather_parts(layout, kFloatGroup, tensors, first, out,
               [](const Tensor& tensor, const std::byte* from, std::span<double> part) {
                 widen(tensor.dtype, from, part);
               });
}

void gather(const Layout& layout, TensorData tensors, std::uint64_t first,
            std::span<std::int64_t> out) {
  gather_parts(layout, kIntegerGroup, tensors, first, out, read_integers);
}

void scatter(const Layout& layout, std::span<const float> values, std::uint64_t first,
             MutableTensorData tensors) {
  scatter_parts(layout, kFloatGroup, values, first, tensors, write_floats);
}

void scatter(const Layout& layout, std::span<const std::int64_t> values, std::uint64_t first,
             MutableTensorData tensors) {
  scatter_parts(layout, kIntegerGroup, values, first, tensors, write_integers);
}

void clear_gaps(const Layout& layout, std::span<float> values, std::uint64_t first) {
  for_each_gap(layout, kFloatGroup, first, values.size(),
               [&](std::size_t offset, std::size_t count) {
                 std::fill_n(values.begin() + static_cast<std::ptrdiff_t>(offset), count, 0.0f);
               });
}

void check_gaps(const Layout& layout, std::span<const float> values, std::uint64_t first) {
  check_all_gaps(layout, kFloatGroup, values, first);
}

void check_gaps(const Layout& layout, std::span<const std::int64_t> values, std::uint64_t first) {
  check_all_gaps(layout, kIntegerGroup, values, first);
}

}  // namespace veilsum
