// Where the parts of what one copy brings lie.
#pragma once

#include <cstddef>

namespace veilsum {

// One behind the other, each 256-byte aligned.
class Places {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t place = end_;
    end_ += (bytes + 255) / 256 * 256;
    return place;
  }
  std::size_t bytes() const { return end_; }

 private:
  std::size_t end_ = 0;
};

}  // namespace veilsum
