// The short way from a method to the engine: a call that was made before is found by the arrays it
// is made with, in some tens of nanoseconds, and nothing of Python runs in between.
//
// Only numpy arrays, contiguous ones, are looked at (or None, where a rank has none). What
// distinguishes calls beyond them (which collective, the root, the operation, an algorithm) is
// compared as an object, by identity: equal objects that are not the same only miss, and take the
// long way. Everything that is compared is held, so an address never comes to mean another object.
// Used under the interpreter's lock.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "mpi_call.hpp"
#include "program.hpp"
#include "symmetric.hpp"

namespace transports {

class KnownCalls {
 public:
  // What a call is made with, as the method was given it.
  struct Ask {
    nanobind::handle collective;
    nanobind::handle x;
    nanobind::handle out;
    nanobind::handle root;
    nanobind::handle op;
    nanobind::handle algorithm;
    nanobind::handle deterministic;
  };
  // What it is, and where.
  struct Found {
    const Call* call;         // or, if it is nullptr,
    const MpiCall* mpis;      // one of MPI's own
    nanobind::handle holder;  // of the call
    const std::byte* input;
    std::byte* output;
    bool is_told;
    std::uint64_t x_bytes;  // of the whole arrays, whether the call uses them or not
    std::uint64_t out_bytes;
  };

  // Whether an array lies in symmetric memory is part of what call it is made for.
  std::optional<Found> find(const Ask& ask, const SymmetricMemory& symmetric) const;
  // `call` holds a Call or an MpiCall. Does nothing if the arrays are not such as `find` looks at.
  // What is held must not lead back to the owner of this table: the garbage collector does not look
  // in here. `is_told`: another rank decides which call comes; whether it is this one shows its
  // first message.
  void remember(const Ask& ask, const SymmetricMemory& symmetric, nanobind::handle call,
                bool is_told);

 private:
  struct Array {  // what of an array distinguishes calls
    std::vector<std::ptrdiff_t> shape;
    nanobind::object dtype;
    bool symmetric = false;
    std::uint64_t bytes = 0;
  };
  struct Entry {
    Array x, out;
    nanobind::object collective, root, op, algorithm, deterministic;
    nanobind::object holder;  // of the call
    const Call* call = nullptr;
    const MpiCall* mpis = nullptr;
    bool is_told = false;
  };
  // Calls of one hash share a set, so that two of them never push each other out; in a full one a
  // later call takes the oldest's entry.
  static constexpr std::size_t kSets = 64, kWays = 4;
  struct Set {
    std::array<Entry, kWays> entries;
    std::size_t oldest = 0;
  };

  struct Given;

  static std::size_t set_of(const Ask& ask, const Given& x, const Given& out);
  static bool is_for(const Entry& entry, const Ask& ask, const Given& x, const Given& out);

  std::array<Set, kSets> sets_;
};

}  // namespace transports
