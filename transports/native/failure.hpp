// The ways a wait or a call can fail, as one exception type; bindings map each kind to its Python
// class in transports/errors.py.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace transports {

enum class FailureKind : std::uint32_t { mismatch = 1, peer_lost, aborted, timeout, misuse };

class Failure : public std::runtime_error {
 public:
  Failure(FailureKind kind, const std::string& text) : std::runtime_error(text), kind_(kind) {}
  FailureKind kind() const noexcept { return kind_; }

 private:
  FailureKind kind_;
};

// A signal handler raised in Python: the error is already set there.
class Interrupted : public std::exception {};

}  // namespace transports
