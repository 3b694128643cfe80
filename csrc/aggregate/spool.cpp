#include "aggregate/spool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace veilsum {
namespace {

// FNV-1a: spreads names, nothing more. A site's name may hold any character, a file's not.
std::uint64_t hash_of(const std::string& name) {
  std::uint64_t hash = 0xCBF29CE484222325;
  for (const char letter : name) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001B3;
  return hash;
}

std::string hex(std::uint64_t number) {
  std::array<char, 16> digits;
  const auto end = std::to_chars(digits.begin(), digits.end(), number, 16).ptr;
  return {digits.begin(), end};
}

// Process and serial number keep apart what has the same hash, and aggregators that share a
// directory.
std::string file_name(const std::string& site) {
  static std::atomic<std::uint64_t> serial{0};
  return "update-" + hex(hash_of(site)) + "-" + hex(static_cast<std::uint64_t>(getpid())) + "-" +
         hex(serial.fetch_add(1)) + ".spool";
}

}  // namespace

StoredBytes::StoredBytes(const std::string& directory, const std::string& site, std::size_t size)
    : memory_(directory.empty() ? size : 0), size_(size) {
  if (directory.empty()) {
    data_ = memory_.data();
    if (data_ == nullptr && size_ > 0) fail("map " + std::to_string(size_) + " bytes of", errno);
    return;
  }
  path_ = directory + "/" + file_name(site);
  file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file_ < 0) fail("create", std::exchange(errno, 0));
}

StoredBytes::StoredBytes(int file, const std::string& site, std::size_t size) : size_(size) {
  const auto refuse = [&](const std::string& why) {
    throw ConfigError("cannot read the update of site '" + site + "' from its file: " + why);
  };
  // Of a page beyond the end of a file there is nothing to read but a signal.
  struct stat facts;
  if (fstat(file, &facts) != 0) refuse(std::system_category().message(errno));
  if (static_cast<std::uint64_t>(facts.st_size) < size)
    refuse("it has " + std::to_string(facts.st_size) + " bytes, expected " + std::to_string(size));
  if (size == 0) return;
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) refuse(std::system_category().message(errno));
  data_ = static_cast<std::byte*>(mapped);
}

StoredBytes::StoredBytes(StoredBytes&& other) noexcept
    : path_(std::move(other.path_)),
      memory_(std::move(other.memory_)),
      file_(std::exchange(other.file_, -1)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {
  other.path_.clear();
}

StoredBytes::~StoredBytes() {
  if (data_ != nullptr && memory_.data() == nullptr) munmap(data_, size_);
  if (file_ >= 0) close(file_);
  if (!path_.empty()) unlink(path_.c_str());
}

void StoredBytes::write(std::size_t offset, std::span<const std::byte> bytes) {
  if (file_ < 0) {
    if (!bytes.empty()) std::memcpy(data_ + offset, bytes.data(), bytes.size());
    return;
  }
  while (!bytes.empty()) {
    const ssize_t written = pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", errno);
    offset += static_cast<std::size_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void StoredBytes::seal() {
  if (file_ < 0) return;
  map(PROT_READ, MAP_SHARED);
  close(std::exchange(file_, -1));
}

void StoredBytes::release_pages() const {
  if (data_ == nullptr || data_ == memory_.data()) return;
  madvise(data_, size_, MADV_DONTNEED);  // advice: if it is not taken, nothing is lost
}

void StoredBytes::map(int protection, int flags) {
  if (size_ == 0) return;  // nothing can be mapped, and there is nothing to read
  void* mapped = mmap(nullptr, size_, protection, flags, file_, 0);
  if (mapped == MAP_FAILED) fail("map " + std::to_string(size_) + " bytes of", errno);
  data_ = static_cast<std::byte*>(mapped);
}

void StoredBytes::fail(const std::string& doing, int error) const {
  const std::string what = path_.empty() ? "memory for an update" : "spool file '" + path_ + "'";
  throw ConfigError("cannot " + doing + " " + what + ": " + std::system_category().message(error),
                    path_.empty() ? "give the aggregator a spool directory"
                                  : "the spool must be a writable directory with enough room");
}

}  // namespace veilsum
