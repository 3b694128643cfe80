// The floating-point mode that exact results rest on.
#pragma once

#include <cfenv>

namespace veilsum {

// Rounds to nearest and keeps subnormal numbers while it lives, whatever the host program
// has set on this thread (torch.set_flush_denormal, for one). Threads started meanwhile
// inherit the mode.
class FloatEnvironment {
 public:
  FloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatEnvironment() { std::fesetenv(&before_); }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
  std::fenv_t before_;
};

}  // namespace veilsum
