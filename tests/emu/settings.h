// What a test can ask of the emulated devices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vs_emu {

inline constexpr int kDevices = 2;

struct Settings {
  std::uint64_t seed = 0;  // order of threads, blocks and streams; 0 is ascending order
  std::size_t memory_bytes = std::size_t{1} << 30;  // of each device
  // The call, counted from 1, from which on every one fails, as those of a lost device do; 0: none.
  std::uint64_t lost_at_call = 0;
  // Secret bytes that must not be found in memory that is given back, pinned memory included, in
  // the shared memory that a block leaves, nor in what is copied to host memory that is not pinned:
  // a driver does that by way of memory of its own. Empty: nothing is looked for.
  std::string needle{};
};

// Applies from the next call on; calls are counted anew.
void use(const Settings& settings);
// Calls since then.
std::uint64_t calls();
// Bytes that were copied to devices since then.
std::size_t copied_bytes();
// How often the needle was found since then. What a lost device holds does not count: nobody can
// clear it.
std::uint64_t needles_found();
// Bytes of device memory that are allocated.
std::size_t allocated_bytes();

}  // namespace vs_emu
