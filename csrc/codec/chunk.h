// Chunks: the pieces in which an update travels (docs/format.md).
//
// A chunk is 64 bytes of header, the scales, the codes; both sections are padded with
// zeros to 16 bytes. Every length is a function of codec and coordinate count, so that a
// chunk says nothing about the values in it by its size.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace veilsum {

using PlanTag = std::array<std::byte, 8>;  // first bytes of a plan digest

inline constexpr std::size_t kChunkHeaderBytes = 64;
inline constexpr std::uint16_t kChunkMasked = 1;
inline constexpr std::uint16_t kChunkRotated = 2;
inline constexpr std::uint16_t kChunkSubsampled = 4;
inline constexpr std::uint16_t kChunkLast = 8;  // last chunk of its group

// What a header says beyond what follows from codec and count.
struct ChunkHeader {
  std::uint16_t codec;
  std::uint16_t flags;  // kChunkMasked | kChunkRotated | kChunkSubsampled | kChunkLast
  std::uint32_t group;
  std::uint64_t first;  // coordinate
  std::uint32_t count;
  std::uint32_t index;
  PlanTag plan;
  std::uint64_t update_id;
};

// Bytes of the two body sections, without padding.
struct SectionSizes {
  std::size_t scales;
  std::size_t codes;
};

// Throws ConfigError if the codec is unknown or count is not 1 .. 2^20.
SectionSizes section_sizes(std::uint16_t codec, std::uint64_t count);

// Exact bytes of a chunk, header included.
std::size_t chunk_bytes(std::uint16_t codec, std::uint64_t count);

// Writes chunk_bytes(header.codec, header.count) bytes to `out`. `scales` and `codes` must
// have their section sizes; either may lie in `out` already, at its place.
void write_chunk(const ChunkHeader& header, std::span<const std::byte> scales,
                 std::span<const std::byte> codes, std::byte* out);

// Where the sections of a chunk begin, for those who encode in place.
std::size_t scales_offset();
std::size_t codes_offset(std::uint16_t codec, std::uint64_t count);

// The chunks of one group of one update, as we expect them.
struct ChunkGrid {
  std::uint16_t codec;
  std::uint32_t group;
  std::uint64_t group_size;  // coordinates
  bool masked;
  PlanTag plan;
  std::uint64_t update_id;
  std::uint64_t chunk_coordinates;
  std::uint16_t transforms = 0;  // kChunkRotated | kChunkSubsampled

  std::uint64_t chunks() const {
    return group_size / chunk_coordinates + (group_size % chunk_coordinates != 0);
  }
  // The header that chunk `index` must have.
  ChunkHeader header(std::uint64_t index) const;
};

// Throws ConfigError unless chunk_coordinates is a multiple of 4096 from 4096 to 2^20.
void require_chunk_coordinates(std::uint64_t chunk_coordinates);

// A checked chunk. The spans point into the bytes that were checked.
struct ChunkView {
  ChunkHeader header;
  std::span<const std::byte> scales;
  std::span<const std::byte> codes;
};

// Checks foreign bytes completely: every field, the exact length, checksum, padding and
// the alphabet of the codec. Nothing is allocated. Throws DecodeError.
ChunkView check_chunk(std::span<const std::byte> chunk, const ChunkGrid& grid);

// The sections of bytes that check_chunk has accepted before.
ChunkView view_chunk(std::span<const std::byte> chunk);

}  // namespace veilsum
