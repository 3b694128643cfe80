// Tensors in memory <-> ranges of the coordinate grid.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/layout.h"

namespace veilsum {

// The first byte of every tensor, in layout order: C-contiguous, of the layout's dtype
// (bf16 as bit patterns), at any address.
using TensorData = std::span<const std::byte* const>;
using MutableTensorData = std::span<std::byte* const>;

// The part of one tensor that lies in a range of coordinates.
struct TensorPart {
  std::size_t tensor;     // number in the layout
  std::uint64_t element;  // first element, counted from the start of the tensor
  std::size_t count;
  std::size_t offset;  // of that element in the range
};

// Calls `body` for every part of coordinates [first, first + count) that is not a gap.
template <class Body>
void for_each_part(const Layout& layout, int group, std::uint64_t first, std::size_t count,
                   Body&& body) {
  const auto& spans = layout.group(group);
  const auto ends_before = [](const TensorSpan& span, std::uint64_t coordinate) {
    return span.first + span.elements <= coordinate;
  };
  auto span = std::lower_bound(spans.begin(), spans.end(), first, ends_before);
  for (; span != spans.end() && span->first < first + count; ++span) {
    const std::uint64_t begin = std::max(first, span->first);
    const std::uint64_t end = std::min(first + count, span->first + span->elements);
    if (begin < end)
      body(TensorPart{span->tensor, begin - span->first, static_cast<std::size_t>(end - begin),
                      static_cast<std::size_t>(begin - first)});
  }
}

// Calls `body(offset, count)` for every stretch of those coordinates that belongs to no tensor;
// some are empty.
template <class Body>
void for_each_gap(const Layout& layout, int group, std::uint64_t first, std::size_t count,
                  Body&& body) {
  std::size_t end = 0;  // of the part before
  for_each_part(layout, group, first, count, [&](const TensorPart& part) {
    body(end, part.offset - end);
    end = part.offset + part.count;
  });
  body(end, count - end);
}

// How float64 becomes float32.
enum class Narrowing {
  nearest,  // ties to even
  // The neighbour with an odd pattern unless exact: rounding that again, to a format with
  // fewer bits, gives the same as rounding once.
  odd,
};

// Values of coordinates [first, first + out.size()) of group 1; gaps are zero.
void gather(const Layout& layout, TensorData tensors, std::uint64_t first, Narrowing narrowing,
            std::span<float> out);
void gather(const Layout& layout, TensorData tensors, std::uint64_t first, std::span<double> out);

// Values of coordinates [first, first + count) of group 1 where they lie, if all of them are f32
// values of one tensor, at an address for floats; else null.
const float* floats_in_place(const Layout& layout, TensorData tensors, std::uint64_t first,
                             std::size_t count);

// As gather(), for group 2. Throws ConfigError, naming the tensor, if a u64 is above 2^63-1.
void gather(const Layout& layout, TensorData tensors, std::uint64_t first,
            std::span<std::int64_t> out);

// out.size() floating-point values of `dtype`, exactly.
void widen(DType dtype, const std::byte* values, std::span<double> out);

// Writes values to their tensors, rounded to the tensor's dtype. Floats for bf16 tensors are
// written as they are: such a tensor has room for four bytes per element. Gaps are not
// looked at. Throws DecodeError, naming the tensor, if a value does not fit its dtype.
void scatter(const Layout& layout, std::span<const float> values, std::uint64_t first,
             MutableTensorData tensors);
void scatter(const Layout& layout, std::span<const std::int64_t> values, std::uint64_t first,
             MutableTensorData tensors);

// Sets the values in gaps between tensors to zero.
void clear_gaps(const Layout& layout, std::span<float> values, std::uint64_t first);

// Throws DecodeError if a value in a gap between tensors is not zero.
void check_gaps(const Layout& layout, std::span<const float> values, std::uint64_t first);
void check_gaps(const Layout& layout, std::span<const std::int64_t> values, std::uint64_t first);

}  // namespace veilsum
