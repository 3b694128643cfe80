// The exact mean, in many orders of arrival.
#include <algorithm>
#include <random>

#include "aggregate/mean.h"
#include "replay.h"

namespace veilsum::replay {
namespace {

struct Update {
  std::string site;
  std::int64_t weight;
  bool encoded;
  UpdateForm form;
  Bytes content;
};

std::vector<Update> read_updates(Record& record) {
  std::vector<Update> updates;
  for (auto left = record.number<std::uint32_t>(); left > 0; --left) {
    Update update{record.text(), record.number<std::int64_t>(), false, {}, {}};
    update.encoded = record.number<std::uint8_t>() != 0;
    if (update.encoded) update.form = read_form(record);
    update.content = record.bytes();
    updates.push_back(std::move(update));
  }
  return updates;
}

void add(MeanAggregator& mean, const Update& update) {
  const Layout& layout = mean.layout();
  if (update.encoded)
    mean.add_chunks(update.site, update.weight, split_chunks(layout, update.form, update.content),
                    update.form, nullptr);
  else
    mean.add_tensors(update.site, update.weight, tensor_places(layout, update.content), nullptr);
}

}  // namespace

void replay_mean(Record& record) {
  const Layout layout = Layout::parse(record.bytes());
  MeanSettings settings{1, "", record.number<double>(), record.number<std::uint64_t>()};
  const auto orders = record.number<std::uint32_t>();
  std::vector<Update> updates = read_updates(record);
  const Bytes expected = record.bytes();
  std::mt19937 shuffle(20'26);
  for (std::uint32_t order = 0; order < orders; ++order) {
    settings.threads = 1 + order % 2;
    MeanAggregator mean(layout, settings);
    for (const Update& update : updates) add(mean, update);
    std::vector<std::byte> tensors(tensor_bytes(layout));
    mean.finish(tensor_places(layout, tensors));
    require_equal("mean", tensors, expected);
    std::shuffle(updates.begin(), updates.end(), shuffle);
  }
}

}  // namespace veilsum::replay
