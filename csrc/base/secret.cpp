#include "base/secret.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace veilsum {
namespace {

std::size_t page_size() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

std::string locked_memory_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  if (limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return std::to_string(limit.rlim_cur / 1024) + " KiB";
}

// Whole pages, locked and left out of core dumps. A child process finds zeros in them: a
// site's training code may fork workers in the middle of a round, and their copies would be
// neither locked nor ever overwritten.
std::byte* map_locked(std::size_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw ConfigError("cannot map " + std::to_string(size) +
                      " bytes for a secret: " + std::strerror(errno));
  if (::mlock(memory, size) != 0 || ::madvise(memory, size, MADV_DONTDUMP) != 0 ||
      ::madvise(memory, size, MADV_WIPEONFORK) != 0) {
    const std::string reason = std::strerror(errno);
    ::munmap(memory, size);
    throw ConfigError("cannot lock " + std::to_string(size) + " bytes for a secret: " + reason +
                          "; the limit on locked memory is " + locked_memory_limit(),
                      "raise it (ulimit -l, LimitMEMLOCK= in a systemd unit, --ulimit memlock= "
                      "of a container)");
  }
  return static_cast<std::byte*>(memory);
}

void unmap_locked(std::byte* memory, std::size_t size) { ::munmap(memory, size); }

// One locked page, cut into slots of one size.
class SlotPage {
 public:
  explicit SlotPage(std::size_t slot_size)
      : memory_(map_locked(page_size())), slots_(page_size() / slot_size) {
    free_.reserve(slots_);
    for (std::size_t i = slots_; i-- > 0;) free_.push_back(memory_ + i * slot_size);
  }
  ~SlotPage() { unmap_locked(memory_, page_size()); }
  SlotPage(const SlotPage&) = delete;
  SlotPage& operator=(const SlotPage&) = delete;

  bool full() const { return free_.empty(); }
  bool unused() const { return free_.size() == slots_; }
  std::byte* begin() const { return memory_; }

  std::byte* take() {
    std::byte* slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give_back(std::byte* slot) noexcept { free_.push_back(slot); }  // capacity is reserved

 private:
  std::byte* memory_;
  std::size_t slots_;
  std::vector<std::byte*> free_;
};

// Locked slots of one size, spread over as many pages as are in use.
class SlotPool {
 public:
  explicit SlotPool(std::size_t slot_size) : slot_size_(slot_size) {}

  std::byte* take() {
    if (with_room_.empty()) add_page();
    SlotPage* page = with_room_.back();
    std::byte* slot = page->take();
    if (page->full()) with_room_.pop_back();
    return slot;
  }

  void give_back(std::byte* slot) noexcept {
    const auto found = std::prev(pages_.upper_bound(slot));
    SlotPage& page = *found->second;
    if (page.full()) with_room_.push_back(&page);  // capacity is reserved
    page.give_back(slot);
    if (!page.unused()) return;
    std::erase(with_room_, &page);
    pages_.erase(found);
  }

 private:
  void add_page() {
    with_room_.reserve(pages_.size() + 1);  // give_back must not allocate
    auto page = std::make_unique<SlotPage>(slot_size_);
    const std::byte* begin = page->begin();
    with_room_.push_back(pages_.emplace(begin, std::move(page)).first->second.get());
  }

  std::size_t slot_size_;
  std::map<const std::byte*, std::unique_ptr<SlotPage>> pages_;  // by first byte
  std::vector<SlotPage*> with_room_;
};

// All locked memory of the process. Slot sizes are powers of two; what does not fit
// into half a page gets pages of its own.
class LockedMemory {
 public:
  static LockedMemory& instance() {
    // Never destroyed: secrets may outlive static destruction.
    static auto* const memory = new LockedMemory;
    return *memory;
  }

  std::byte* take(std::size_t size) {
    if (!in_slot(size)) return map_locked(in_pages(size));
    const std::lock_guard lock(mutex_);
    return pool(size).take();
  }

  void give_back(std::byte* memory, std::size_t size) noexcept {
    if (!in_slot(size)) return unmap_locked(memory, in_pages(size));
    const std::lock_guard lock(mutex_);
    pool(size).give_back(memory);
  }

 private:
  static constexpr std::size_t kSmallestSlot = 32;
  static constexpr std::size_t kLargestSlot = 2048;

  LockedMemory() {
    for (std::size_t size = kSmallestSlot; size <= kLargestSlot; size *= 2)
      pools_.emplace_back(size);
  }

  static bool in_slot(std::size_t size) { return size <= kLargestSlot; }
  static std::size_t in_pages(std::size_t size) {
    return (size + page_size() - 1) / page_size() * page_size();
  }
  SlotPool& pool(std::size_t size) {
    const std::size_t slot = std::bit_ceil(std::max(size, kSmallestSlot));
    return pools_[static_cast<std::size_t>(std::countr_zero(slot / kSmallestSlot))];
  }

  std::mutex mutex_;
  std::vector<SlotPool> pools_;
};

std::size_t checked_size(std::size_t size) {
  if (size == 0 || size > Secret::kMaxSize)
    throw ConfigError("a secret holds 1 to " + std::to_string(Secret::kMaxSize) + " bytes, got " +
                      std::to_string(size));
  return size;
}

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

void fill_from_os(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = ::getrandom(bytes.data(), bytes.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0)
      throw ConfigError(std::string("the operating system's random generator failed: ") +
                        std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(got));
  }
}

}  // namespace

void wipe(void* data, std::size_t size) { ::explicit_bzero(data, size); }

Secret::Secret(std::size_t size)
    : data_(LockedMemory::instance().take(checked_size(size))),
      size_(size),
      id_(next_id()),
      owner_(::getpid()) {}

Secret Secret::from_os(std::size_t size) {
  Secret secret(size);
  fill_from_os(secret.bytes());
  return secret;
}

Secret Secret::copy_of(std::span<const std::byte> bytes) {
  Secret secret(bytes.size());
  std::copy(bytes.begin(), bytes.end(), secret.data_);
  return secret;
}

Secret::Secret(Secret&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(other.size_),
      id_(other.id_),
      owner_(other.owner_),
      wiped_(std::exchange(other.wiped_, true)) {}

Secret::~Secret() {
  if (data_ == nullptr) return;
  wipe(data_, size_);
  LockedMemory::instance().give_back(data_, size_);
}

void Secret::require_content() const {
  if (wiped_) throw ConfigError("secret " + std::to_string(id_) + " was wiped");
  if (owner_ != ::getpid())
    throw ConfigError("secret " + std::to_string(id_) + " stayed in the process that made it",
                      "make it after the fork, or start the process anew (spawn)");
}

std::span<const std::byte> Secret::bytes() const {
  require_content();
  return {data_, size_};
}

std::span<std::byte> Secret::bytes() {
  require_content();
  return {data_, size_};
}

void Secret::wipe_now() {
  if (data_ != nullptr) wipe(data_, size_);
  wiped_ = true;
}

bool Secret::equals(const Secret& other) const {
  const auto mine = bytes();
  const auto theirs = other.bytes();
  if (mine.size() != theirs.size()) return false;  // sizes are public
  // volatile: the compiler must not leave the loop at the first difference.
  volatile std::uint8_t difference = 0;
  for (std::size_t i = 0; i < mine.size(); ++i)
    difference = difference | std::to_integer<std::uint8_t>(mine[i] ^ theirs[i]);
  return difference == 0;
}

}  // namespace veilsum
