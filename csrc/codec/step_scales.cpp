#include "codec/step_scales.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace veilsum {
namespace {

std::size_t needed_entries(const Layout& layout, std::size_t block) {
  if (block == 0) return layout.group(kFloatGroup).size();
  return (layout.group_size(kFloatGroup) + block - 1) / block;
}

}  // namespace

ScaleGrid::ScaleGrid(const Layout& layout, std::size_t block, std::size_t entries)
    : block_(block), entries_(entries) {
  if (block != 0 && block != 256 && block != 1024 && block != 4096)
    throw ConfigError("a scale is shared by a tensor or by 256, 1024 or 4096 coordinates, not " +
                      std::to_string(block));
  if (entries != needed_entries(layout, block))
    throw ConfigError("the table of scales needs " + std::to_string(needed_entries(layout, block)) +
                          " entries, got " + std::to_string(entries),
                      block == 0 ? "give one per floating-point tensor of the layout"
                                 : "give one per block of coordinates of group 1");
  if (block != 0) return;
  const auto& spans = layout.group(kFloatGroup);
  for (std::size_t i = 0; i < spans.size(); ++i)
    ends_.push_back(i + 1 < spans.size() ? spans[i + 1].first : layout.group_size(kFloatGroup));
}

ScaleGrid::ScaleGrid(const Layout& layout)
    : ScaleGrid(layout, 0, layout.group(kFloatGroup).size()) {}

ScaleGrid::Found ScaleGrid::find(std::uint64_t coordinate) const {
  if (block_ != 0) return {coordinate / block_, (coordinate / block_ + 1) * block_};
  const auto end = std::upper_bound(ends_.begin(), ends_.end(), coordinate);
  return {static_cast<std::size_t>(end - ends_.begin()), *end};
}

}  // namespace veilsum
