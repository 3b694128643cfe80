// One checksum of many pieces of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace veilsum {

// CRC-32C of the sizes of the pieces and of their CRC-32Cs, which are taken on several threads.
// Not for storage or the wire: it notices that memory has changed, nothing else.
std::uint32_t checksum_all(const std::vector<std::span<const std::byte>>& pieces, unsigned threads);

}  // namespace veilsum
