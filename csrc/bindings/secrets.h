// Secret arguments of bound functions.
#pragma once

#include <memory>
#include <vector>

#include "base/secret.h"
#include "bindings/arrays.h"

namespace veilsum {

// Shares ownership, so that the secret outlives a call that runs without the GIL even if
// another thread drops the last Python reference meanwhile.
inline std::shared_ptr<Secret> to_secret(const char* name, py::handle object) {
  instance<Secret>(name, object);
  return object.cast<std::shared_ptr<Secret>>();
}

class SecretList {
 public:
  SecretList(const char* name, py::handle sequence) {
    for (const py::handle item : py::iter(sequence)) owners_.push_back(to_secret(name, item));
    pointers_.reserve(owners_.size());
    for (const auto& owner : owners_) pointers_.push_back(owner.get());
  }
  const std::vector<const Secret*>& pointers() const { return pointers_; }

 private:
  std::vector<std::shared_ptr<Secret>> owners_;
  std::vector<const Secret*> pointers_;
};

inline py::list to_list(std::vector<Secret> secrets) {
  py::list list(secrets.size());
  for (std::size_t i = 0; i < secrets.size(); ++i)
    list[i] = py::cast(std::make_shared<Secret>(std::move(secrets[i])));
  return list;
}

}  // namespace veilsum
