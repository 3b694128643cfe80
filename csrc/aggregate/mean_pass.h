// The exact weighted mean as one pass over committed updates.
#pragma once

#include "aggregate/update_set.h"
#include "codec/gather.h"
#include "codec/layout.h"

namespace veilsum {

// Writes the mean of each tensor, rounded once to its dtype. Each tile of kTile coordinates has
// a scale of its own, from the maxima and weights of the set.
//
// Throws ConfigError if the set is empty, or if tensors that are not ours were changed so that
// the sum could overflow.
void write_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
                MutableTensorData tensors);

}  // namespace veilsum
