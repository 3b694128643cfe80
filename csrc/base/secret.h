// Memory for keys, seeds and shares.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>

namespace veilsum {

// Overwrites memory in a way the compiler may not remove.
void wipe(void* data, std::size_t size);

// Bytes in memory that is locked (never swapped out), left out of core dumps and of forked
// processes, and overwritten when released. Small secrets share locked pages, because the
// usual limit on locked memory is a few MiB and a round can hold thousands of shares.
class Secret {
 public:
  static constexpr std::size_t kMaxSize = std::size_t{1} << 20;

  // `size` zero bytes. Throws ConfigError if the size is 0 or above kMaxSize, or the
  // operating system refuses to lock more memory.
  explicit Secret(std::size_t size);
  // Fresh bytes from the operating system's generator.
  static Secret from_os(std::size_t size);
  static Secret copy_of(std::span<const std::byte> bytes);

  Secret(Secret&& other) noexcept;
  Secret& operator=(Secret&&) = delete;
  Secret(const Secret&) = delete;
  Secret& operator=(const Secret&) = delete;
  ~Secret();

  // Throws ConfigError once the secret is wiped, and in a process forked from the one that
  // made it, which has zeros in its place: zeros must never pass for a key.
  std::span<const std::byte> bytes() const;
  std::span<std::byte> bytes();

  std::size_t size() const { return size_; }
  // A process-wide serial number; says nothing about the content.
  std::uint64_t id() const { return id_; }
  bool wiped() const { return wiped_; }

  // Overwrites the content at once. The memory itself stays until the secret dies,
  // because somebody may still look at it through the buffer protocol.
  void wipe_now();

  // Takes the same time wherever the contents differ.
  bool equals(const Secret& other) const;

 private:
  void require_content() const;

  std::byte* data_;
  std::size_t size_;
  std::uint64_t id_;
  pid_t owner_;
  bool wiped_ = false;
};

// Ordinary working memory that is overwritten before it goes back to the heap: for
// keystream and unmasked steps, which are too large to lock and live too briefly to
// be swapped out.
template <class T>
class WipedBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // A cache line, and the widest vector register.
  static constexpr std::size_t kAlignment = 64;

  explicit WipedBuffer(std::size_t count)
      : count_(count),
        data_(static_cast<T*>(::operator new(bytes(), std::align_val_t{kAlignment}))) {}
  ~WipedBuffer() {
    wipe(data_, bytes());
    ::operator delete(data_, std::align_val_t{kAlignment});
  }
  WipedBuffer(const WipedBuffer&) = delete;
  WipedBuffer& operator=(const WipedBuffer&) = delete;

  T* data() { return data_; }
  std::size_t size() const { return count_; }
  std::span<T> span() { return {data_, count_}; }

 private:
  std::size_t bytes() const { return count_ * sizeof(T); }

  std::size_t count_;
  T* data_;
};

}  // namespace veilsum
