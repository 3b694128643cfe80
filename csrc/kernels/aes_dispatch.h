// Which implementation of AES runs.
#pragma once

#include <string_view>
#include <vector>

#include "kernels/ring_kernels.h"

namespace veilsum {

// Those this CPU can run, slowest first: "bitsliced" (any CPU), "aesni", "vaes256", "vaes512".
std::vector<std::string_view> supported_aes();

// The one in use: what use_aes() chose, else what VEILSUM_AES names, else the fastest that the
// level in use allows for: none but "bitsliced" at base, "aesni" from v2 on, "vaes256" from v3
// on, "vaes512" at v4. So a forced level stays one of an older CPU.
//
// Both throw ConfigError if VEILSUM_AES names none that this CPU can run.
std::string_view active_aes();
WriteKeystream aes256_keystream();

// Makes the whole process use one; "" goes back to the default. Throws ConfigError if this CPU
// cannot run it. Any of them gives the same bits.
void use_aes(std::string_view name);

}  // namespace veilsum
