// Rules that look at each coordinate alone: the median and means of what lies in the middle.
#pragma once

#include "aggregate/update_set.h"
#include "codec/gather.h"
#include "codec/layout.h"
#include "device/device.h"
#include "rules/tile_rows.h"

namespace veilsum {

enum class OrderKind {
  median,
  middle,   // the mean of `kept` values from rank `first`
  nearest,  // the mean of the `kept` values nearest to the median
};

struct OrderRule {
  OrderKind kind;
  std::size_t first;
  std::size_t kept;
};

// Writes the rule's result for every coordinate. Sums are integers, as those of the mean; what is
// written is rounded once to the tensor's dtype. Memory: the rows of one tile per
// thread. With a device (null: this machine's processors) group 1 is ordered there, with the same
// bits.
//
// Throws ConfigError if first + kept is beyond the rows, or as TileRows.
void take_order(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix,
                const OrderRule& rule, unsigned threads, const Device* device,
                MutableTensorData tensors);

// Writes one update's values as they are.
void take_update(const Layout& layout, const UpdateSnapshot& set, std::size_t index,
                 unsigned threads, MutableTensorData tensors);

}  // namespace veilsum
