// Which scales and codes each codec allows.
#pragma once

#include "codec/chunk.h"

namespace veilsum {

// Throws DecodeError if a scale or code is not one that an encoder writes: a float that is
// not finite; an int8 code -128; a scale that is negative, not finite, subnormal or too
// large; codes without a scale; a set bit behind the last ring word.
void check_alphabet(const ChunkView& chunk);

}  // namespace veilsum
