#include "update/assemble.h"

#include <string>

#include "base/error.h"
#include "codec/codecs.h"

namespace veilsum {

std::vector<std::size_t> assembled_sizes(const Layout& layout, const UpdateForm& form,
                                         std::size_t scale_bytes, std::size_t code_bytes) {
  require_form(form);
  const ChunkGrid grid = update_grid(layout, form, kFloatGroup);
  std::vector<std::size_t> sizes;
  SectionSizes needed{0, 0};
  for (std::uint64_t i = 0; i < grid.chunks(); ++i) {
    const ChunkHeader header = grid.header(i);
    const SectionSizes sections = section_sizes(header.codec, header.count);
    needed.scales += sections.scales;
    needed.codes += sections.codes;
    sizes.push_back(chunk_bytes(header.codec, header.count));
  }
  if (needed.scales != scale_bytes || needed.codes != code_bytes)
    throw ConfigError(codec_name(form.codec) + " chunks of this layout need " +
                      std::to_string(needed.scales) + " bytes of scales and " +
                      std::to_string(needed.codes) + " of codes, got " +
                      std::to_string(scale_bytes) + " and " + std::to_string(code_bytes));
  return sizes;
}

void assemble_chunks(const Layout& layout, const UpdateForm& form,
                     std::span<const std::byte> scales, std::span<const std::byte> codes,
                     std::span<std::byte* const> chunks) {
  const ChunkGrid grid = update_grid(layout, form, kFloatGroup);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    const ChunkHeader header = grid.header(i);
    const SectionSizes sections = section_sizes(header.codec, header.count);
    write_chunk(header, scales.first(sections.scales), codes.first(sections.codes), chunks[i]);
    scales = scales.subspan(sections.scales);
    codes = codes.subspan(sections.codes);
  }
}

}  // namespace veilsum
