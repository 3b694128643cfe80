// The chunk parser, against a second one that was written from docs/format.md alone.
#include <algorithm>
#include <cstring>

#include "codec/chunk.h"
#include "input.h"
#include "kernels/dispatch.h"
#include "slow_format.h"

namespace veilsum::fuzz {
namespace {

constexpr std::uint8_t kRepairHeader = 1;  // so that the body is looked at, too
constexpr std::uint8_t kRepairChecksum = 2;
constexpr std::uint8_t kMasked = 4;
constexpr std::uint8_t kSecondChunk = 8;

ChunkGrid read_grid(Input& input, std::uint8_t mode) {
  static const std::vector<std::uint16_t> codecs = all_codecs();
  ChunkGrid grid{};
  grid.codec = codecs[input.below(static_cast<std::uint32_t>(codecs.size()))];
  grid.group = 1 + input.byte() % 2;
  grid.group_size = 1 + input.below(320) + (mode & kSecondChunk ? 4096 : 0);
  grid.masked = (mode & kMasked) != 0;
  for (std::byte& byte : grid.plan) byte = std::byte{input.byte()};
  grid.update_id = input.byte();
  grid.chunk_coordinates = 4096;
  return grid;
}

slow::Place place_in(const ChunkGrid& grid, std::uint64_t index) {
  const bool last = index == (grid.group_size - 1) / 4096;
  return {grid.codec,
          (grid.masked ? 1u : 0u) | (last ? 8u : 0u),
          grid.group,
          4096 * index,
          last ? grid.group_size - 4096 * index : 4096,
          index,
          reinterpret_cast<const std::uint8_t*>(grid.plan.data()),
          grid.update_id};
}

slow::Octets read_chunk(const Input& input, std::uint8_t mode, const slow::Octets& header) {
  const auto rest = input.rest();
  slow::Octets chunk(rest.size());
  if (!rest.empty()) std::memcpy(chunk.data(), rest.data(), rest.size());
  if (mode & kRepairHeader && chunk.size() >= 60)
    std::copy(header.begin(), header.end(), chunk.begin());
  if (mode & kRepairChecksum && chunk.size() >= 64) {
    const std::uint32_t sum = slow::checksum(chunk);
    for (unsigned i = 0; i < 4; ++i) chunk[60 + i] = static_cast<std::uint8_t>(sum >> (8 * i));
  }
  return chunk;
}

bool accepts(const slow::Octets& chunk, const ChunkGrid& grid, std::uint64_t* index) {
  try {
    *index = check_chunk(std::as_bytes(std::span(chunk)), grid).header.index;
    return true;
  } catch (const DecodeError&) {
    return false;
  }
}

void compare(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const std::uint8_t mode = input.byte();
  const ChunkGrid grid = read_grid(input, mode);
  const std::uint64_t last = (grid.group_size - 1) / 4096;
  const auto sizes = slow::sizes(grid.codec, place_in(grid, last).count);
  const slow::Octets header = slow::header(place_in(grid, last), sizes.value_or(slow::Sizes{0, 0}));
  const slow::Octets chunk = read_chunk(input, mode, header);

  for (const KernelTable* table : supported_kernels()) {
    use_isa(table->name);
    std::uint64_t index = 0;
    const bool accepted = accepts(chunk, grid, &index);
    if (!sizes) continue;  // a codec the second parser does not know: memory errors only
    if (accepted && index != last) continue;  // the first of two chunks
    if (accepted != slow::allows(chunk, place_in(grid, last), *sizes))
      fail(std::string(table->name) + (accepted ? " accepts" : " refuses") + " a chunk of codec " +
           codec_name(grid.codec) + ", the page does not");
  }
}

}  // namespace
}  // namespace veilsum::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  veilsum::fuzz::compare(data, size);
  return 0;
}
