// Rules that look at each coordinate, and the matrix that those of distances follow from.
#include "base/float_environment.h"
#include "replay.h"
#include "rules/gram.h"
#include "rules/order_pass.h"

namespace veilsum::replay {
namespace {

// Every update by itself.
RowMix all_updates(std::size_t count) {
  std::vector<std::vector<std::int64_t>> rows(count, std::vector<std::int64_t>(count));
  for (std::size_t i = 0; i < count; ++i) rows[i][i] = 1;
  return {std::move(rows), count};
}

void require_order(const MeanAggregator& updates, const OrderRule& rule, Bytes expected) {
  const UpdateSnapshot set = updates.snapshot();
  std::vector<std::byte> tensors(tensor_bytes(updates.layout()));
  take_order(updates.layout(), set, all_updates(set.updates.size()), rule, updates.threads(),
             nullptr, tensor_places(updates.layout(), tensors));
  require_equal("what a rule gives", tensors, expected);
}

}  // namespace

void replay_rules(Record& record) {
  const Layout layout = Layout::parse(record.bytes());
  const std::vector<SiteUpdate> updates = read_updates(record);
  const Bytes median = record.bytes(), trimmed = record.bytes(), gram = record.bytes();
  for (const unsigned threads : {1u, 2u}) {
    MeanAggregator set(layout, {threads, "", 0, 0});
    for (const SiteUpdate& update : updates) add_update(set, update);
    const FloatEnvironment exact;
    require_order(set, {OrderKind::median, 0, 0}, median);
    require_order(set, {OrderKind::middle, 1, updates.size() - 2}, trimmed);
    const Gram found = gram_of(layout, set.snapshot(), threads, nullptr);
    require_equal("the Gram matrix", bytes_of(found.values), gram);
  }
}

}  // namespace veilsum::replay
