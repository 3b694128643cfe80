// A model's tensors to the chunks of a plain update.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "codec/gather.h"
#include "element/philox.h"
#include "update/form.h"

namespace veilsum {

struct EncodePlan {
  UpdateForm form;
  double limit;                       // ring codecs only: largest |value| accepted, else 0
  std::optional<PhiloxKey> rounding;  // int8 and ring codecs; none rounds to nearest
  bool least_error;                   // eden codecs only, see CodeRule
  unsigned threads;
  bool clip = false;  // ring codecs only: clamps a value beyond its limit instead of refusing
};

// Bytes of each chunk in (group, index) order. Throws ConfigError as require_form.
std::vector<std::size_t> update_chunk_sizes(const Layout& layout, const EncodePlan& plan);

// Fills chunks of those sizes.
//
// Throws ConfigError, naming the tensor, if a value is not finite, exceeds the limit, does
// not fit the codec, or is a u64 above 2^63-1; `chunks` are then unusable.
void encode_update(const Layout& layout, TensorData tensors, const EncodePlan& plan,
                   std::span<std::byte* const> chunks);

}  // namespace veilsum
