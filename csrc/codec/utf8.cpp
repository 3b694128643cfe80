#include "codec/utf8.h"

#include <cstdint>

namespace veilsum {
namespace {

// Continuation bytes that `lead` announces, and the smallest code point that needs them.
struct Form {
  int continuation;  // -1: not a lead byte
  std::uint32_t smallest;
};

Form form_of(unsigned char lead) {
  if (lead < 0x80) return {0, 0};
  if (lead >> 5 == 0x06) return {1, 0x80};
  if (lead >> 4 == 0x0E) return {2, 0x800};
  if (lead >> 3 == 0x1E) return {3, 0x10000};
  return {-1, 0};
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i++]);
    const Form form = form_of(lead);
    if (form.continuation < 0) return false;
    std::uint32_t point = form.continuation == 0 ? lead : lead & (0x3Fu >> form.continuation);
    for (int k = 0; k < form.continuation; ++k, ++i) {
      if (i == text.size() || (text[i] & 0xC0) != 0x80) return false;
      point = point << 6 | (text[i] & 0x3F);
    }
    const bool surrogate = point >= 0xD800 && point < 0xE000;
    if (point < form.smallest || surrogate || point > 0x10FFFF) return false;
  }
  return true;
}

}  // namespace veilsum
