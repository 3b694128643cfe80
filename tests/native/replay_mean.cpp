// The exact mean, in many orders of arrival.
#include <algorithm>
#include <random>

#include "replay.h"

namespace veilsum::replay {
std::vector<SiteUpdate> read_updates(Record& record) {
  std::vector<SiteUpdate> updates;
  for (auto left = record.number<std::uint32_t>(); left > 0; --left) {
    SiteUpdate update{record.text(), record.number<std::int64_t>(), false, {}, {}};
    update.encoded = record.number<std::uint8_t>() != 0;
    if (update.encoded) update.form = read_form(record);
    update.content = record.bytes();
    updates.push_back(std::move(update));
  }
  return updates;
}

void add_update(MeanAggregator& mean, const SiteUpdate& update) {
  const Layout& layout = mean.layout();
  if (update.encoded)
    mean.add_chunks(update.site, update.weight, split_chunks(layout, update.form, update.content),
                    update.form, nullptr);
  else
    mean.add_tensors(update.site, update.weight, tensor_places(layout, update.content), nullptr);
}

void replay_mean(Record& record) {
  const Layout layout = Layout::parse(record.bytes());
  MeanSettings settings{1, "", record.number<double>(), record.number<std::uint64_t>()};
  const auto orders = record.number<std::uint32_t>();
  std::vector<SiteUpdate> updates = read_updates(record);
  const Bytes expected = record.bytes();
  std::mt19937 shuffle(20'26);
  for (std::uint32_t order = 0; order < orders; ++order) {
    settings.threads = 1 + order % 2;
    MeanAggregator mean(layout, settings);
    for (const SiteUpdate& update : updates) add_update(mean, update);
    std::vector<std::byte> tensors(tensor_bytes(layout));
    mean.finish(tensor_places(layout, tensors));
    require_equal("mean", tensors, expected);
    std::shuffle(updates.begin(), updates.end(), shuffle);
  }
}

}  // namespace veilsum::replay
