// Chunks of a plain update back to values.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "codec/gather.h"
#include "update/form.h"

namespace veilsum {

using ByteSpan = std::span<const std::byte>;

// Checks the chunks of a whole update: each one, and that all are there in (group, index)
// order. The views point into `chunks`. Throws DecodeError; ConfigError as require_form.
std::vector<ChunkView> check_update(const Layout& layout, std::span<const ByteSpan> chunks,
                                    const UpdateForm& form, unsigned threads = 1);

// Throws DecodeError unless there is one chunk of each size: a cheap check before anything is
// kept.
void require_sizes(std::span<const ByteSpan> chunks, std::span<const std::size_t> sizes);

// Integers `begin` .. begin + out.size() - 1 of a checked chunk of group 2.
void decode_integers(const ChunkView& chunk, std::size_t begin, std::span<std::int64_t> out);

// Decodes the views of check_update into one buffer per tensor, of the layout's dtypes; bf16
// tensors as floats. Throws DecodeError if a gap between tensors is not zero, or a value does
// not fit its tensor.
void decode_update(const Layout& layout, std::span<const ChunkView> chunks, const UpdateForm& form,
                   MutableTensorData tensors, unsigned threads = 1);

}  // namespace veilsum
