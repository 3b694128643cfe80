// The exceptions of the core. bindings/register_errors.cpp turns each into the class
// of the same name in veilsum.errors. Messages are lower case without a full stop and
// never carry a key, a share, a mask or a model value.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace veilsum {

class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::string hint = {})
      : std::runtime_error(message), hint_(std::move(hint)) {}
  // What to do about it; empty when there is nothing to say.
  const std::string& hint() const { return hint_; }

 private:
  std::string hint_;
};

// The caller's settings or arguments cannot work.
class ConfigError : public Error {
 public:
  using Error::Error;
};

// Bytes from a peer do not follow the format.
class DecodeError : public Error {
 public:
  using Error::Error;
};

// A CUDA call failed: which call, which device, how much was asked for.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// A site broke the rules. The message continues "site 'name' ...".
class PeerError : public Error {
 public:
  PeerError(std::string site, const std::string& message, std::string hint = {})
      : Error(message, std::move(hint)), site_(std::move(site)) {}
  const std::string& site() const { return site_; }

 private:
  std::string site_;
};

}  // namespace veilsum
