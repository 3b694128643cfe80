// The exact weighted mean as one pass over committed updates.
#pragma once

#include <cstddef>

#include "aggregate/mean_sink.h"
#include "aggregate/update_set.h"
#include "codec/layout.h"

namespace veilsum {

// s of the tile with this number: the values of the set, times their weights and 2^s, add up to
// less than 2^63.
int tile_exponent(const UpdateSnapshot& set, std::size_t index);

// Hands the sums of every tile to the sink. Each tile of kTile coordinates has a scale of its own,
// from the maxima and weights of the set.
//
// Throws ConfigError if the set is empty, or if tensors that are not ours were changed so that
// the sum could overflow.
void take_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
               const MeanSink& sink);
// Of one group alone.
void take_float_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
                     const MeanSink& sink);
void take_integer_mean(const Layout& layout, const UpdateSnapshot& set, unsigned threads,
                       const MeanSink& sink);

}  // namespace veilsum
