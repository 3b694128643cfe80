// Large blocks of memory that are used again. A fresh page costs the kernel more time to clear
// and map than a sum costs to fill it.
#pragma once

#include <cstddef>

namespace veilsum {

// Uninitialised memory. Blocks that were let go of are kept for others of the same size, marked
// as free to the kernel, which takes them back when memory runs short; beyond an eighth of the
// machine's memory they are unmapped. Nothing here waits for another thread, nor for one that a
// fork has left behind.
class RecycledMemory {
 public:
  RecycledMemory() = default;
  // Null data() if there is no memory; errno then says why. 0 bytes have null data() too.
  explicit RecycledMemory(std::size_t size);
  RecycledMemory(RecycledMemory&& other) noexcept;
  RecycledMemory& operator=(RecycledMemory&&) = delete;
  RecycledMemory(const RecycledMemory&) = delete;
  RecycledMemory& operator=(const RecycledMemory&) = delete;
  ~RecycledMemory();

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t mapped_ = 0;
};

}  // namespace veilsum
