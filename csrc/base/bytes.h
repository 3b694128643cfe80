// Bounded little-endian reading and writing of byte strings.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace veilsum {

// Reads foreign bytes. take() is the only place that compares a length with what
// is left, so no caller can forget to.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // `what` names the field in the error.
  std::span<const std::byte> take(std::size_t size, std::string_view what) {
    if (size > remaining())
      throw DecodeError("truncated at byte " + std::to_string(offset_) + ": " + std::string(what) +
                        " needs " + std::to_string(size) + " bytes, " +
                        std::to_string(remaining()) + " are left");
    const auto taken = bytes_.subspan(offset_, size);
    offset_ += size;
    return taken;
  }

  std::uint8_t u8(std::string_view what) { return integer<std::uint8_t>(what); }
  std::uint16_t u16(std::string_view what) { return integer<std::uint16_t>(what); }
  std::uint32_t u32(std::string_view what) { return integer<std::uint32_t>(what); }
  std::uint64_t u64(std::string_view what) { return integer<std::uint64_t>(what); }

  std::size_t offset() const { return offset_; }
  std::size_t remaining() const { return bytes_.size() - offset_; }

  // A format that tolerates left-over bytes has more than one encoding of one thing.
  void expect_end() const {
    if (remaining() != 0)
      throw DecodeError(std::to_string(remaining()) + " unexpected bytes after the end");
  }

 private:
  template <class Integer>
  Integer integer(std::string_view what) {
    const auto bytes = take(sizeof(Integer), what);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < sizeof(Integer); ++i)
      value |= std::uint64_t{std::to_integer<std::uint8_t>(bytes[i])} << (8 * i);
    return static_cast<Integer>(value);
  }

  std::span<const std::byte> bytes_;
  std::size_t offset_ = 0;
};

// Appends to a byte vector that it owns.
class ByteWriter {
 public:
  void u8(std::uint8_t value) { integer(value); }
  void u16(std::uint16_t value) { integer(value); }
  void u32(std::uint32_t value) { integer(value); }
  void u64(std::uint64_t value) { integer(value); }
  void raw(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  void raw(std::string_view text) { raw(std::as_bytes(std::span(text.data(), text.size()))); }
  void zeros(std::size_t count) { bytes_.resize(bytes_.size() + count); }

  std::size_t size() const { return bytes_.size(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::vector<std::byte> release() { return std::move(bytes_); }

 private:
  template <class Integer>
  void integer(Integer value) {
    std::array<std::byte, sizeof(Integer)> bytes;
    for (std::size_t i = 0; i < sizeof(Integer); ++i)
      bytes[i] = static_cast<std::byte>(std::uint64_t{value} >> (8 * i));
    raw(bytes);
  }

  std::vector<std::byte> bytes_;
};

}  // namespace veilsum
