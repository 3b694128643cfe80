// What the fuzz targets share: cutting the fuzzer's bytes into choices, and saying no.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "codec/codecs.h"

namespace veilsum::fuzz {

// The fuzzer's bytes, taken from the front; zeros when they are used up.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : left_(std::as_bytes(std::span(data, size))) {}

  std::uint8_t byte() {
    if (left_.empty()) return 0;
    const auto value = std::to_integer<std::uint8_t>(left_[0]);
    left_ = left_.subspan(1);
    return value;
  }
  std::uint32_t below(std::uint32_t bound) {
    const std::uint32_t high = byte();
    return (high << 8 | byte()) % bound;
  }
  std::span<const std::byte> rest() const { return left_; }

 private:
  std::span<const std::byte> left_;
};

// Ends the process in a way that the fuzzer keeps the input for.
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

inline bool is_codec(unsigned number) {
  try {
    codec_name(static_cast<std::uint16_t>(number));
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

// The numbers of all codecs this build has, ascending: 9 bits of family, 5 of variant.
inline std::vector<std::uint16_t> all_codecs() {
  std::vector<std::uint16_t> numbers;
  for (unsigned family = 0; family < 512; ++family)
    for (unsigned variant = 0; is_codec(family) && variant < 32; ++variant)
      if (is_codec(family | variant << 9))
        numbers.push_back(static_cast<std::uint16_t>(family | variant << 9));
  std::ranges::sort(numbers);
  return numbers;
}

}  // namespace veilsum::fuzz
