#include "codec/chunk.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/format.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "values travel as they lie in memory");

constexpr std::uint32_t kMagic = 0x31434C56;  // "VLC1"
constexpr std::uint64_t kMaxCount = std::uint64_t{1} << 20;
constexpr std::size_t kSectionAlignment = 16;
constexpr std::size_t kChecksumOffset = 60;

std::size_t padded(std::size_t size) {
  return (size + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}

std::uint32_t checksum(std::span<const std::byte> chunk) {
  const auto crc32c = kernels().codec.crc32c;
  const std::uint32_t header = crc32c(0, raw(chunk.data()), kChecksumOffset);
  return crc32c(header, raw(chunk.data()) + kChunkHeaderBytes, chunk.size() - kChunkHeaderBytes);
}

void copy_section(std::span<const std::byte> section, std::byte* out) {
  if (section.empty()) return;  // its pointer may be null
  if (section.data() != out) std::memmove(out, section.data(), section.size());
  std::memset(out + section.size(), 0, padded(section.size()) - section.size());
}

void store32(std::uint32_t value, std::byte* out) { std::memcpy(out, &value, sizeof value); }

std::vector<std::byte> header_bytes(const ChunkHeader& header, const SectionSizes& sizes) {
  ByteWriter writer;
  writer.u32(kMagic);
  writer.u8(1);
  writer.u8(0);
  writer.u16(kChunkHeaderBytes);
  writer.u16(header.codec);
  writer.u16(header.flags);
  writer.u32(header.group);
  writer.u64(header.first);
  writer.u32(header.count);
  writer.u32(header.index);
  writer.u32(static_cast<std::uint32_t>(sizes.scales));
  writer.u32(static_cast<std::uint32_t>(sizes.codes));
  writer.raw(header.plan);
  writer.u64(header.update_id);
  writer.u32(0);
  return writer.release();
}

// --- checks --------------------------------------------------------------------

void expect(std::string_view field, std::uint64_t found, std::uint64_t expected) {
  if (found == expected) return;
  throw DecodeError("chunk " + std::string(field) + " is " + std::to_string(found) + ", expected " +
                    std::to_string(expected));
}

void expect_zeros(std::string_view what, std::span<const std::byte> bytes) {
  for (const std::byte byte : bytes)
    if (byte != std::byte{0})
      throw DecodeError("padding after the chunk's " + std::string(what) + " is not zero");
}

std::uint64_t checked_index(std::uint32_t index, const ChunkGrid& grid) {
  if (index < grid.chunks()) return index;
  throw DecodeError("chunk index is " + std::to_string(index) + ", group " +
                    std::to_string(grid.group) + " has " + std::to_string(grid.chunks()) +
                    " chunks");
}

// Reads the header and holds every field against the one the grid asks for.
ChunkHeader check_header(std::span<const std::byte> chunk, const ChunkGrid& grid) {
  ByteReader reader(chunk);
  expect("magic", reader.u32("chunk magic"), kMagic);
  expect("major version", reader.u8("chunk version"), 1);
  expect("minor version", reader.u8("chunk version"), 0);
  expect("header size", reader.u16("chunk header size"), kChunkHeaderBytes);
  const auto rest = reader.take(kChunkHeaderBytes - reader.offset(), "chunk header");
  ByteReader fields(rest);
  expect("codec", fields.u16("codec"), grid.codec);
  const std::uint16_t flags = fields.u16("flags");
  expect("group", fields.u32("group"), grid.group);
  const std::uint64_t first = fields.u64("coordinate offset");
  const std::uint32_t count = fields.u32("coordinate count");
  const ChunkHeader wanted = grid.header(checked_index(fields.u32("index"), grid));
  const SectionSizes sizes = section_sizes(wanted.codec, wanted.count);
  expect("flags", flags, wanted.flags);
  expect("coordinate offset", first, wanted.first);
  expect("coordinate count", count, wanted.count);
  expect("scale bytes", fields.u32("scale bytes"), sizes.scales);
  expect("code bytes", fields.u32("code bytes"), sizes.codes);
  if (std::memcmp(fields.take(8, "plan").data(), wanted.plan.data(), 8) != 0)
    throw DecodeError("chunk was made for another plan");
  if (fields.u64("update id") != wanted.update_id)
    throw DecodeError("chunk belongs to another update");
  expect("reserved field", fields.u32("reserved field"), 0);
  return wanted;
}

// `header` was checked, or its chunk was; the bytes are not asked again, because somebody may
// have changed them meanwhile.
ChunkView sections_of(std::span<const std::byte> chunk, const ChunkHeader& header) {
  const SectionSizes sizes = section_sizes(header.codec, header.count);
  return {header, chunk.subspan(scales_offset(), sizes.scales),
          chunk.subspan(codes_offset(header.codec, header.count), sizes.codes)};
}

}  // namespace

SectionSizes section_sizes(std::uint16_t codec, std::uint64_t count) {
  if (count == 0 || count > kMaxCount)
    throw ConfigError("a chunk holds 1 to 1048576 coordinates, not " + std::to_string(count));
  return codec_format(codec).sizes(codec, count);
}

std::size_t scales_offset() { return kChunkHeaderBytes; }

std::size_t codes_offset(std::uint16_t codec, std::uint64_t count) {
  return kChunkHeaderBytes + padded(section_sizes(codec, count).scales);
}

std::size_t chunk_bytes(std::uint16_t codec, std::uint64_t count) {
  return codes_offset(codec, count) + padded(section_sizes(codec, count).codes);
}

void write_chunk(const ChunkHeader& header, std::span<const std::byte> scales,
                 std::span<const std::byte> codes, std::byte* out) {
  const SectionSizes sizes = section_sizes(header.codec, header.count);
  if (scales.size() != sizes.scales || codes.size() != sizes.codes)
    throw ConfigError("sections of " + std::to_string(scales.size()) + " and " +
                      std::to_string(codes.size()) + " bytes do not make a chunk of " +
                      std::to_string(header.count) + " coordinates");
  copy_section(codes, out + codes_offset(header.codec, header.count));
  copy_section(scales, out + scales_offset());
  const std::vector<std::byte> head = header_bytes(header, sizes);
  std::memcpy(out, head.data(), head.size());
  store32(checksum({out, chunk_bytes(header.codec, header.count)}), out + kChecksumOffset);
}

ChunkHeader ChunkGrid::header(std::uint64_t index) const {
  const std::uint64_t first = index * chunk_coordinates;
  const std::uint64_t count = std::min(chunk_coordinates, group_size - first);
  const bool last = first + count == group_size;
  return {codec,
          static_cast<std::uint16_t>((masked ? kChunkMasked : 0) | transforms |
                                     (last ? kChunkLast : 0)),
          group,
          first,
          static_cast<std::uint32_t>(count),
          static_cast<std::uint32_t>(index),
          plan,
          update_id};
}

void require_chunk_coordinates(std::uint64_t chunk_coordinates) {
  // Whole mask tiles of 512 and whole tiles of the mean, so that none is in two chunks.
  if (chunk_coordinates == 0 || chunk_coordinates % 4096 != 0 || chunk_coordinates > kMaxCount)
    throw ConfigError("chunk_coordinates must be a multiple of 4096 up to 1048576, got " +
                      std::to_string(chunk_coordinates));
}

ChunkView view_chunk(std::span<const std::byte> chunk) {
  ByteReader reader(chunk.subspan(8));
  ChunkHeader header{};
  header.codec = reader.u16("codec");
  header.flags = reader.u16("flags");
  header.group = reader.u32("group");
  header.first = reader.u64("coordinate offset");
  header.count = reader.u32("coordinate count");
  header.index = reader.u32("index");
  reader.take(8, "section sizes");
  std::memcpy(header.plan.data(), reader.take(8, "plan").data(), 8);
  header.update_id = reader.u64("update id");
  return sections_of(chunk, header);
}

ChunkView check_chunk(std::span<const std::byte> chunk, const ChunkGrid& grid) {
  const ChunkHeader header = check_header(chunk, grid);
  expect("size", chunk.size(), chunk_bytes(header.codec, header.count));
  std::uint32_t stored;
  std::memcpy(&stored, chunk.data() + kChecksumOffset, sizeof stored);
  if (stored != checksum(chunk)) throw DecodeError("chunk checksum does not match its bytes");
  const ChunkView view = sections_of(chunk, header);
  expect_zeros("scales", chunk.subspan(scales_offset() + view.scales.size(),
                                       padded(view.scales.size()) - view.scales.size()));
  expect_zeros("codes",
               chunk.subspan(chunk.size() - padded(view.codes.size()) + view.codes.size()));
  codec_format(header.codec).check(view);
  return view;
}

}  // namespace veilsum
