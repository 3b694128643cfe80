// The updates of a set as rows of a matrix, tile by tile.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "aggregate/update_set.h"
#include "kernels/order_kernels.h"

namespace veilsum {

// Rows that are integer-weighted means of updates: row r is sum(weights[r][i] * update i) over
// the row's total.
struct RowMix {
  // One row per entry of `weights`, which has a non-negative weight per update. Throws ConfigError
  // if a row has another length, none but zeros, or a total of 2^31 or more.
  RowMix(std::vector<std::vector<std::int64_t>> row_weights, std::size_t updates);

  std::size_t rows() const { return weights.size(); }

  std::vector<std::vector<std::int64_t>> weights;
  std::vector<std::uint64_t> totals;
  std::vector<bool> needed;  // per update: whether some row holds it
};

// The only update that a row holds; nothing if it is a mean of several.
std::optional<std::size_t> only_update(const std::vector<std::int64_t>& weights);

// s of row r in a tile: values times weights and 2^s add up to less than 2^62. It is from the row's
// own updates alone: a huge value in one update must not cost rows without it their bits.
int row_exponent(const UpdateSnapshot& set, const RowMix& mix, std::size_t r, std::size_t index);

// 64-byte aligned memory for kernels.
struct alignas(64) CacheLine {
  std::byte bytes[64];
};

// Values of the rows of one tile of group 1. float holds what updates of a layout without f64
// tensors hold, double the rest. A row that is a mean is rounded once to Value.
template <class Value>
class TileRows {
 public:
  // Refers to its arguments.
  TileRows(const Layout& layout, const UpdateSnapshot& set, const RowMix& mix);

  // One pointer per row, valid until the next call. Throws ConfigError if tensors that are not
  // ours were changed so that sums could overflow.
  std::span<const Row> load(std::size_t index, const Tile& tile);

 private:
  const WireFloat* in_place(const CommittedUpdate& update, const Tile& tile) const;
  Row load_update(std::size_t i, std::size_t index, const Tile& tile);
  void fix_updates(std::size_t index, const Tile& tile, int exponent);
  Row mix_row(std::size_t r, const Tile& tile, int exponent);
  void mix_rows(std::size_t index, const Tile& tile);

  const Layout& layout_;
  const UpdateSnapshot& set_;
  const RowMix& mix_;
  std::vector<std::optional<std::size_t>> single_;  // per row: its only update
  std::vector<std::vector<Value>> own_;  // per update: decoded values, where they must be
  std::vector<std::vector<Value>> mixed_;
  std::vector<std::vector<std::uint64_t>> fixed_;  // per update, if a row mixes
  std::vector<Row> rows_;
};

// The same for group 2, with means rounded to the nearest integer, ties to even.
class IntegerRows {
 public:
  IntegerRows(const UpdateSnapshot& set, const RowMix& mix);
  // rows()[r][i] is the value of coordinate i in row r.
  const std::vector<std::vector<std::int64_t>>& load(const Tile& tile);

 private:
  const UpdateSnapshot& set_;
  const RowMix& mix_;
  std::vector<std::vector<std::int64_t>> updates_;
  std::vector<std::vector<std::int64_t>> rows_;
};

}  // namespace veilsum
