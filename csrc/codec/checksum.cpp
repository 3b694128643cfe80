#include "codec/checksum.h"

#include <algorithm>

#include "base/parallel.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

// Large enough that a thread is worth its start, small enough that a model of one tensor keeps
// several of them busy.
constexpr std::size_t kRunBytes = std::size_t{1} << 22;

// Bytes that one call of the kernel goes over.
using Run = std::span<const std::byte>;

template <class Object>
const unsigned char* raw(const Object* object) {
  return reinterpret_cast<const unsigned char*>(object);
}

}  // namespace

std::uint32_t checksum_all(const std::vector<std::span<const std::byte>>& pieces,
                           unsigned threads) {
  std::vector<Run> runs;
  std::vector<std::uint64_t> sizes;
  std::size_t bytes = 0;
  for (const auto& piece : pieces) {
    sizes.push_back(piece.size());
    bytes += piece.size();
    for (std::size_t begin = 0; begin < piece.size(); begin += kRunBytes)
      runs.push_back(piece.subspan(begin, std::min(kRunBytes, piece.size() - begin)));
  }
  const auto crc32c = kernels().codec.crc32c;
  std::vector<std::uint32_t> found(runs.size());
  // A model has many small tensors: as many of them per range as make up a long run.
  const std::size_t usual = bytes / std::max<std::size_t>(1, runs.size()) + 1;
  parallel_for(runs.size(), std::max<std::size_t>(1, kRunBytes / usual), threads,
               [&](const Range& range) {
                 for (std::size_t i = range.begin; i < range.end; ++i)
                   found[i] = crc32c(0, raw(runs[i].data()), runs[i].size());
               });
  const std::uint32_t shape = crc32c(0, raw(sizes.data()), sizes.size() * sizeof(std::uint64_t));
  return crc32c(shape, raw(found.data()), found.size() * sizeof(std::uint32_t));
}

}  // namespace veilsum
