#include "base/parallel.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace veilsum {
namespace {

class Job {
 public:
  Job(std::size_t items, std::size_t range_size, const std::function<void(const Range&)>& body)
      : items_(items),
        range_size_(range_size),
        ranges_(items / range_size + (items % range_size != 0)),
        body_(body) {}

  std::size_t ranges() const { return ranges_; }

  // Ranges are handed out in order, so when range i fails every lower one has been
  // taken already and will run to its end: the lowest failure is always found.
  void work() {
    for (;;) {
      const std::size_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= ranges_ || index > first_failure_.load(std::memory_order_relaxed)) return;
      const std::size_t begin = index * range_size_;
      try {
        body_({index, begin, begin + std::min(range_size_, items_ - begin)});
      } catch (...) {
        fail(index, std::current_exception());
      }
    }
  }

  void cancel() { next_.store(ranges_, std::memory_order_relaxed); }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  void fail(std::size_t index, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (index >= first_failure_.load(std::memory_order_relaxed)) return;
    first_failure_.store(index, std::memory_order_relaxed);
    error_ = std::move(error);
  }

  const std::size_t items_;
  const std::size_t range_size_;
  const std::size_t ranges_;
  const std::function<void(const Range&)>& body_;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::size_t> first_failure_{std::numeric_limits<std::size_t>::max()};
  std::mutex mutex_;
  std::exception_ptr error_;
};

void run_on_helpers(Job& job, std::size_t helpers) {
  std::vector<std::jthread> started;  // joins on every way out
  started.reserve(helpers);
  try {
    for (std::size_t i = 0; i < helpers; ++i) started.emplace_back([&job] { job.work(); });
  } catch (const std::system_error& error) {
    job.cancel();
    throw ConfigError("cannot start thread " + std::to_string(started.size() + 2) + " of " +
                          std::to_string(helpers + 1) + ": " + error.code().message(),
                      "lower `threads`, or raise the limit on processes (ulimit -u)");
  }
  job.work();
}

}  // namespace

void parallel_for(std::size_t items, std::size_t range_size, unsigned threads,
                  const std::function<void(const Range&)>& body) {
  if (threads == 0) throw ConfigError("threads must be at least 1, got 0");
  if (items == 0) return;
  Job job(items, range_size, body);
  run_on_helpers(job, std::min<std::size_t>(threads, job.ranges()) - 1);
  job.rethrow();
}

}  // namespace veilsum
