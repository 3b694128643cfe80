// The layout parser: what it takes is exactly what it would write.
#include <algorithm>

#include "codec/layout.h"
#include "input.h"

namespace veilsum::fuzz {
namespace {

void require_grid(const Layout& layout, int group) {
  std::uint64_t end = 0;
  for (const TensorSpan& span : layout.group(group)) {
    if (span.first != (end + 63) / 64 * 64) fail("a tensor does not start where it must");
    end = span.first + span.elements;
  }
  if (layout.group_size(group) != (end + 63) / 64 * 64) fail("a group has the wrong size");
}

void parse(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  try {
    const Layout layout = Layout::parse(bytes);
    const std::vector<std::byte> again = layout.canonical_bytes();
    if (!std::ranges::equal(again, bytes)) fail("a layout has two encodings");
    require_grid(layout, kFloatGroup);
    require_grid(layout, kIntegerGroup);
  } catch (const DecodeError&) {
    // Refused, as most bytes must be.
  }
}

}  // namespace
}  // namespace veilsum::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  veilsum::fuzz::parse(data, size);
  return 0;
}
