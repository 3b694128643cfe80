// Many threads add, remove, look and finish at once: for the thread sanitizer, and for the
// digest, which must not show any of it.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "aggregate/mean.h"
#include "base/error.h"

namespace veilsum {
namespace {

constexpr int kThreads = 4;
constexpr int kSites = 24;
constexpr int kRounds = 20;

Layout make_layout() {
  return Layout({{"w", DType::f32, {3, 3000}, 0}, {"n", DType::i64, {130}, 0}});
}

struct Model {
  std::vector<float> w;
  std::vector<std::int64_t> n;
  std::vector<const std::byte*> places() const {
    return {reinterpret_cast<const std::byte*>(w.data()),
            reinterpret_cast<const std::byte*>(n.data())};
  }
};

Model make_model(int number) {
  Model model{std::vector<float>(9000), std::vector<std::int64_t>(130)};
  for (std::size_t i = 0; i < model.w.size(); ++i)
    model.w[i] = static_cast<float>((static_cast<int>(i) * 37 + number * 101) % 2001 - 1000) / 64;
  for (std::size_t i = 0; i < model.n.size(); ++i)
    model.n[i] = static_cast<std::int64_t>(i) * number - 50;
  return model;
}

std::string site_name(int number) { return "site-" + std::to_string(number); }

Model finish(const MeanAggregator& mean) {
  Model result{std::vector<float>(9000), std::vector<std::int64_t>(130)};
  const std::vector<std::byte*> places = {reinterpret_cast<std::byte*>(result.w.data()),
                                          reinterpret_cast<std::byte*>(result.n.data())};
  mean.finish(places);
  return result;
}

// Adds its share of the sites; where nothing is forgotten, every third is taken out and comes
// back.
void add_share(MeanAggregator& mean, const std::vector<Model>& models, int thread, bool streaming) {
  for (int number = thread; number < kSites; number += kThreads) {
    const std::vector<const std::byte*> places = models[static_cast<std::size_t>(number)].places();
    mean.add_tensors(site_name(number), number + 1, places, nullptr);
    if (streaming || number % 3 != 0) continue;
    mean.remove(site_name(number));
    mean.add_tensors(site_name(number), number + 1, places, nullptr);
  }
}

void look(const MeanAggregator& mean, const std::atomic<bool>& done) {
  while (!done) {
    if (mean.sites().empty() || mean.total_weight() == 0) continue;
    try {
      finish(mean);
    } catch (const ConfigError&) {
      // The one site there was has just been removed.
    }
  }
}

Model run_round(const MeanSettings& settings, const std::vector<Model>& models) {
  MeanAggregator mean(make_layout(), settings);
  const bool streaming = settings.streaming_max_abs > 0;
  std::atomic<bool> done{false};
  {
    std::jthread watcher([&] { look(mean, done); });
    {
      std::vector<std::jthread> adders;
      for (int thread = 0; thread < kThreads; ++thread)
        adders.emplace_back([&, thread] { add_share(mean, models, thread, streaming); });
    }
    done = true;
  }
  return finish(mean);
}

bool one_result(const MeanSettings& settings, const std::vector<Model>& models) {
  const Model first = run_round(settings, models);
  for (int round = 1; round < kRounds; ++round) {
    const Model again = run_round(settings, models);
    if (std::memcmp(first.w.data(), again.w.data(), 4 * first.w.size()) != 0) return false;
    if (first.n != again.n) return false;
  }
  return true;
}

}  // namespace
}  // namespace veilsum

int main() {
  std::vector<veilsum::Model> models;
  for (int number = 0; number < veilsum::kSites; ++number)
    models.push_back(veilsum::make_model(number));
  const bool kept = veilsum::one_result({2, "", 0, 0}, models);
  const bool streamed = veilsum::one_result({2, "", 64, 1000}, models);
  if (kept && streamed) return 0;
  std::fprintf(stderr, "error: the mean depends on timing\n");
  return 1;
}
