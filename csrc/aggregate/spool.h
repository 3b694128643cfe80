// Where committed updates lie until the mean is taken: in memory or in files.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "base/recycled_memory.h"

namespace veilsum {

// A fixed number of bytes, written once and then only read. With a directory they are in a
// file of their own, readable by its owner alone, which is removed with the object. Or they are the
// beginning of a file that somebody else wrote and keeps as it is, and which stays.
class StoredBytes {
 public:
  // `directory` "" means memory; `site` is what the file is named after. Throws ConfigError
  // with the operating system's reason if there is no room.
  StoredBytes(const std::string& directory, const std::string& site, std::size_t size);
  // The first bytes of an open file, whose descriptor stays the caller's. Sealed. Throws
  // ConfigError if it has fewer or cannot be mapped.
  StoredBytes(int file, const std::string& site, std::size_t size);
  StoredBytes(StoredBytes&& other) noexcept;
  StoredBytes& operator=(StoredBytes&&) = delete;
  StoredBytes(const StoredBytes&) = delete;
  StoredBytes& operator=(const StoredBytes&) = delete;
  ~StoredBytes();

  // May be called from several threads for bytes that do not overlap, before seal().
  void write(std::size_t offset, std::span<const std::byte> bytes);
  // Where to write without a copy; null if the bytes are in a file.
  std::byte* place(std::size_t offset) { return memory_.data() ? data_ + offset : nullptr; }
  // Ends writing. The address of bytes() does not change when the object is moved.
  void seal();
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Lets go of the memory behind bytes() that are in a file; reading them brings it back. It counts
  // as ours otherwise, although it is the file's and can be taken at any time.
  void release_pages() const;

 private:
  void map(int protection, int flags);
  [[noreturn]] void fail(const std::string& doing, int error) const;

  std::string path_;       // of a file of our own, else ""
  RecycledMemory memory_;  // empty if in a file
  int file_ = -1;
  std::byte* data_ = nullptr;
  std::size_t size_;
};

}  // namespace veilsum
