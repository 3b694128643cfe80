#include "base/recycled_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

namespace veilsum {
namespace {

// Sizes are rounded up to it, so that blocks are multiples of large pages where that matters.
constexpr std::size_t kUnit = std::size_t{64} << 10;
constexpr std::size_t kLargePages = std::size_t{4} << 20;

struct Block {
  std::byte* data;
  std::size_t size;
};

std::size_t most_kept() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(sysconf(_SC_PAGESIZE)) / 8;
}

class Shelf {
 public:
  // A block of exactly this size, or one without data.
  Block take(std::size_t size) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(),
                                    [size](const Block& block) { return block.size == size; });
    if (found == blocks_.rend()) return {};
    const Block block = *found;
    blocks_.erase(std::next(found).base());
    kept_ -= size;
    return block;
  }

  // False if the block is not kept. The oldest make room for it.
  bool keep(const Block& block) noexcept {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.size > most_kept_) return false;
    try {
      blocks_.push_back(block);
    } catch (...) {
      return false;
    }
    kept_ += block.size;
    std::size_t gone = 0;
    for (; kept_ > most_kept_; ++gone) {
      munmap(blocks_[gone].data, blocks_[gone].size);
      kept_ -= blocks_[gone].size;
    }
    blocks_.erase(blocks_.begin(), blocks_.begin() + static_cast<std::ptrdiff_t>(gone));
    return true;
  }

 private:
  const std::size_t most_kept_ = most_kept();
  std::mutex mutex_;
  std::vector<Block> blocks_;  // oldest first
  std::size_t kept_ = 0;
};

// Never destroyed: arrays of the host program may outlive everything else.
Shelf& shelf() {
  static Shelf& only = *new Shelf;
  return only;
}

}  // namespace

RecycledMemory::RecycledMemory(std::size_t size) {
  if (size == 0 || size > SIZE_MAX - kUnit) return;
  mapped_ = (size + kUnit - 1) / kUnit * kUnit;
  data_ = shelf().take(mapped_).data;
  if (data_ != nullptr) return;
  void* fresh = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (fresh == MAP_FAILED) return;
  data_ = static_cast<std::byte*>(fresh);
  if (mapped_ >= kLargePages) madvise(data_, mapped_, MADV_HUGEPAGE);
}

RecycledMemory::RecycledMemory(RecycledMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), mapped_(other.mapped_) {}

RecycledMemory::~RecycledMemory() {
  if (data_ == nullptr) return;
  madvise(data_, mapped_, MADV_FREE);
  if (!shelf().keep({data_, mapped_})) munmap(data_, mapped_);
}

}  // namespace veilsum
