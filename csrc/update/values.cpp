#include "update/values.h"

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "codec/codecs.h"
#include "update/value_codec.h"

namespace veilsum {
namespace {

constexpr double kHalfOverflow = 65520;        // between 65504 and the next step
constexpr double kBrainOverflow = 0x1.ffp127;  // likewise
constexpr double kFloatOverflow = 0x1.ffffffp127;

// How many values of a tensor have a magnitude of at least `bound`, or none at all (NaN).
std::uint64_t count_from(const Tensor& tensor, const std::byte* values, double bound) {
  constexpr std::uint64_t kPiece = 4096;
  std::array<double, kPiece> piece;
  std::uint64_t found = 0;
  for (std::uint64_t begin = 0; begin < tensor.elements; begin += kPiece) {
    const std::uint64_t count = std::min(kPiece, tensor.elements - begin);
    widen(tensor.dtype, values + begin * dtype_size(tensor.dtype), {piece.data(), count});
    for (std::uint64_t i = 0; i < count; ++i) found += !(std::fabs(piece[i]) < bound);
  }
  return found;
}

}  // namespace

double overflow_threshold(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return kHalfOverflow;
    case DType::bf16:
      return kBrainOverflow;
    case DType::f32:
      return kFloatOverflow;
    default:
      return std::numeric_limits<double>::infinity();
  }
}

double sent_limit(DType dtype) {
  switch (dtype) {
    case DType::f16:
      return 65512;
    case DType::bf16:
      return 0x1.fe8p127;
    default:
      return 0x1.ffffff8p127;
  }
}

void refuse_not_finite(const Tensor& tensor, std::uint64_t count) {
  throw ConfigError(
      "tensor '" + tensor.name + "' has " + std::to_string(count) + " values that are not finite",
      "check the training step; NaN and infinity would spoil the mean");
}

std::uint64_t count_beyond(const Tensor& tensor, const std::byte* values, double most) {
  return count_from(tensor, values, std::nextafter(most, std::numeric_limits<double>::infinity()));
}

std::uint64_t count_not_finite(const Tensor& tensor, const std::byte* values) {
  return count_from(tensor, values, std::numeric_limits<double>::infinity());
}

void refuse_values(const Layout& layout, TensorData tensors, std::uint16_t codec) {
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const Tensor& tensor = layout.tensors()[span.tensor];
    if (const std::uint64_t bad = count_not_finite(tensor, tensors[span.tensor]))
      refuse_not_finite(tensor, bad);
  }
  for (const TensorSpan& span : layout.group(kFloatGroup)) {
    const Tensor& tensor = layout.tensors()[span.tensor];
    if (const std::uint64_t bad =
            count_from(tensor, tensors[span.tensor], value_codec(codec).overflow_threshold(codec)))
      throw ConfigError("tensor '" + tensor.name + "' has " + std::to_string(bad) +
                            " values too large for codec " + codec_name(codec),
                        codec_scales(codec) == ScaleFormat::f16
                            ? "let its scales be f32, or scale the update down"
                            : "use a codec with a wider range, or scale the update down");
  }
  throw ConfigError("the arrays changed while they were encoded");
}

}  // namespace veilsum
