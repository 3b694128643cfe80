// Chunks from scales and codes that somebody else has made.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "codec/layout.h"
#include "update/form.h"

namespace veilsum {

// Bytes of each chunk of group 1. Throws ConfigError as require_form, or if the sections of the
// chunks, one after the other, do not have just these bytes.
std::vector<std::size_t> assembled_sizes(const Layout& layout, const UpdateForm& form,
                                         std::size_t scale_bytes, std::size_t code_bytes);

// Fills chunks of those sizes. Scales and codes are not looked at.
void assemble_chunks(const Layout& layout, const UpdateForm& form,
                     std::span<const std::byte> scales, std::span<const std::byte> codes,
                     std::span<std::byte* const> chunks);

}  // namespace veilsum
