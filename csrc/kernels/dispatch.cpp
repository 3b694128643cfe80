#include "kernels/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <string>

#include "base/cpu.h"
#include "base/error.h"

namespace veilsum {
namespace {

std::atomic<const KernelTable*> chosen{nullptr};
constinit thread_local int weakest = 0;  // how many WeakestKernels live on this thread

std::vector<const KernelTable*> find_supported() {
  std::vector<const KernelTable*> tables{&kBaseKernels};
#if defined(__x86_64__)
  const CpuLevel level = cpu_level();
  if (level >= CpuLevel::v2) tables.push_back(&kV2Kernels);
  if (level >= CpuLevel::v3) tables.push_back(&kV3Kernels);
  if (level >= CpuLevel::v4) tables.push_back(&kV4Kernels);
#endif
  return tables;
}

std::string supported_names() {
  std::string names;
  for (const KernelTable* table : supported_kernels()) {
    if (!names.empty()) names += ' ';
    names += table->name;
  }
  return names;
}

const KernelTable& find(std::string_view name, const std::string& asked_by) {
  for (const KernelTable* table : supported_kernels())
    if (name == table->name) return *table;
  throw ConfigError(asked_by + " asks for instruction set '" + std::string(name) +
                        "'; this CPU and build run: " + supported_names(),
                    "choose one of these, or none for the strongest");
}

const KernelTable& default_table() {
  const char* forced = std::getenv("VEILSUM_ISA");
  if (forced == nullptr || *forced == '\0') return *supported_kernels().back();
  return find(forced, "VEILSUM_ISA");
}

}  // namespace

const std::vector<const KernelTable*>& supported_kernels() {
  static const std::vector<const KernelTable*> tables = find_supported();
  return tables;
}

WeakestKernels::WeakestKernels() { ++weakest; }

WeakestKernels::~WeakestKernels() { --weakest; }

bool weakest_kernels() { return weakest != 0; }

const KernelTable& kernels() {
  if (weakest_kernels()) return kBaseKernels;
  if (const KernelTable* table = chosen.load(std::memory_order_acquire)) return *table;
  static const KernelTable& table = default_table();
  return table;
}

void use_isa(std::string_view name) {
  chosen.store(name.empty() ? nullptr : &find(name, "use_isa()"), std::memory_order_release);
}

}  // namespace veilsum
