#include "kernels/aes_dispatch.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "base/cpu.h"
#include "base/error.h"
#include "kernels/aes_kernels.h"
#include "kernels/dispatch.h"

namespace veilsum {
namespace {

struct Choice {
  std::string_view name;
  CpuLevel level;        // the weakest that it runs at without being asked for
  WriteKeystream write;  // null: the loop of the level in use
};

std::atomic<const Choice*> chosen{nullptr};

// Slowest first.
std::vector<Choice> find_choices() {
  std::vector<Choice> found{{"bitsliced", CpuLevel::base, nullptr}};
#if defined(__x86_64__)
  const CpuLevel level = cpu_level();
  const CpuFeatures has = cpu_features();
  if (has.aes && level >= CpuLevel::v2)
    found.push_back({kAesNiKernels.name, CpuLevel::v2, kAesNiKernels.write});
  if (has.aes && has.vaes && level >= CpuLevel::v3)
    found.push_back({kVaes256Kernels.name, CpuLevel::v3, kVaes256Kernels.write});
  if (has.aes && has.vaes && level >= CpuLevel::v4)
    found.push_back({kVaes512Kernels.name, CpuLevel::v4, kVaes512Kernels.write});
#endif
  return found;
}

const std::vector<Choice>& choices() {
  static const std::vector<Choice> all = find_choices();
  return all;
}

const Choice& find(std::string_view name, const std::string& asked_by) {
  std::string names;
  for (const Choice& choice : choices()) {
    if (choice.name == name) return choice;
    if (!names.empty()) names += ' ';
    names += choice.name;
  }
  throw ConfigError(asked_by + " asks for AES implementation '" + std::string(name) +
                        "'; this CPU and build run: " + names,
                    "choose one of these, or none for the fastest");
}

// The level of the kernels in use.
CpuLevel active_level() {
  const auto& tables = supported_kernels();
  const KernelTable* const in_use = &kernels();  // asked once: another thread may change it
  std::size_t place = 0;
  while (tables[place] != in_use) ++place;
  return static_cast<CpuLevel>(static_cast<std::size_t>(CpuLevel::base) + place);
}

const Choice& fastest_at(CpuLevel level) {
  const Choice* fastest = &choices().front();
  for (const Choice& choice : choices())
    if (choice.level <= level) fastest = &choice;
  return *fastest;
}

const Choice* forced_by_environment() {
  const char* forced = std::getenv("VEILSUM_AES");
  if (forced == nullptr || *forced == '\0') return nullptr;
  return &find(forced, "VEILSUM_AES");
}

const Choice& active() {
  if (weakest_kernels()) return choices().front();
  if (const Choice* choice = chosen.load(std::memory_order_acquire)) return *choice;
  static const Choice* const forced = forced_by_environment();
  return forced != nullptr ? *forced : fastest_at(active_level());
}

}  // namespace

std::vector<std::string_view> supported_aes() {
  std::vector<std::string_view> names;
  for (const Choice& choice : choices()) names.push_back(choice.name);
  return names;
}

std::string_view active_aes() { return active().name; }

WriteKeystream aes256_keystream() {
  const Choice& choice = active();
  return choice.write != nullptr ? choice.write : kernels().ring.aes256;
}

void use_aes(std::string_view name) {
  chosen.store(name.empty() ? nullptr : &find(name, "use_aes()"), std::memory_order_release);
}

}  // namespace veilsum
