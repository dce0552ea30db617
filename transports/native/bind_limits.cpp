// The limits, as the benchmark sees them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "limits.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

using Addresses = std::vector<std::uintptr_t>;

Move move_of(const std::tuple<Addresses, Addresses, std::size_t>& given) {
  Move move{{}, {}, std::get<2>(given)};
  for (const std::uintptr_t address : std::get<0>(given)) {
    move.sources.push_back(reinterpret_cast<const std::byte*>(address));
  }
  for (const std::uintptr_t address : std::get<1>(given)) {
    move.destinations.push_back(reinterpret_cast<std::byte*>(address));
  }
  return move;
}

std::uint32_t limit_calls(const std::string& method_name, bool pingpong,
                          const std::vector<std::tuple<Addresses, Addresses, std::size_t>>& given,
                          std::size_t sets, std::size_t stride, std::uintptr_t lines,
                          std::uint32_t rank, std::uint32_t ranks, std::uint32_t number,
                          std::uint64_t calls, double timeout) {
  const Method method = method_of(method_name);
  if (sets == 0) throw std::invalid_argument("sets: expected at least 1, found 0");
  std::vector<Move> moves;
  for (const auto& each : given) {
    moves.push_back(move_of(each));
    if (moves.back().sources.empty()) {
      throw std::invalid_argument("moves: expected a source for each, found none");
    }
    if (method == Method::copy && moves.back().sources.size() > 1) {
      throw std::invalid_argument("moves: expected one source for a copy, found " +
                                  std::to_string(moves.back().sources.size()));
    }
  }
  const nb::gil_scoped_release release;
  return run_limit(method, pingpong ? News::pingpong : News::exchange, moves, {sets, stride},
                   {reinterpret_cast<std::byte*>(lines), rank, ranks}, number, calls, timeout);
}

}  // namespace

void register_limits(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("limit_calls", &limit_calls, "method"_a, "pingpong"_a, "moves"_a, "sets"_a, "stride"_a,
             "lines"_a, "rank"_a, "ranks"_a, "number"_a, "calls"_a, "timeout"_a,
             "Tell the other ranks by a flag, then move the bytes; so many times.");
}

}  // namespace transports
