// Whether bytes are text.
#pragma once

#include <string_view>

namespace veilsum {

// Well-formed UTF-8 as of RFC 3629: no overlong forms, no surrogates, nothing past
// U+10FFFF, so that one text has one encoding.
bool is_utf8(std::string_view text);

}  // namespace veilsum
