// Plans, calls and the engine, as Python sees them; transports/_native.pyi says what they take.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "held_block.hpp"
#include "rank.hpp"
#include "repeatable.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

using Numbers = std::vector<std::uint32_t>;
using Places = std::vector<std::tuple<std::uint32_t, std::uint32_t>>;
// What ranks write there may be cut in the middle of a character.
nb::object decoded(const std::string& text) {
  return nb::steal(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

using Written =
    std::tuple<Numbers, Numbers, Numbers, Places, Places, std::uint32_t, Places, Places>;

std::vector<Place> places(const Places& written) {
  std::vector<Place> found;
  for (const auto& [space, chunk] : written) {
    if (space > static_cast<std::uint32_t>(Space::scratch)) {
      throw std::invalid_argument("a space is 0..3, found " + std::to_string(space));
    }
    found.push_back({static_cast<Space>(space), chunk});
  }
  return found;
}

std::vector<Reach> reaches(const Places& written) {
  std::vector<Reach> found;
  for (const auto& [peer, space] : written) found.push_back({peer, static_cast<Space>(space)});
  return found;
}

Plan make_plan(std::uint32_t rank, std::uint32_t size, std::uint32_t chunk_count, Numbers inputs,
               Numbers outputs, Numbers scratch, std::uint32_t widest,
               const std::vector<Written>& instructions, std::vector<Numbers> peer_inputs,
               std::vector<Numbers> peer_outputs, const Numbers& remote, Numbers delays,
               std::uint32_t in_flight) {
  Plan plan{rank,
            size,
            chunk_count,
            std::move(inputs),
            std::move(outputs),
            std::move(scratch),
            widest,
            {},
            std::move(peer_inputs),
            std::move(peer_outputs),
            {},
            std::move(delays),
            in_flight};
  for (const auto& [chunks, sources, targets, reads, writes, own_at, peeks, pokes] : instructions) {
    plan.instructions.push_back({chunks, sources, targets, places(reads), places(writes), own_at,
                                 reaches(peeks), reaches(pokes)});
  }
  for (const auto space : remote) plan.remote.push_back(static_cast<Space>(space));
  plan.check();
  return plan;
}

// Calls what Python has given, from whichever thread waits.
template <class Result>
Result ask_python(const nb::object& function, const auto&... arguments) {
  try {
    return nb::cast<Result>(function(arguments...));
  } catch (nb::python_error& error) {
    error.restore();  // of a signal handler: the rest is caught where it arises
    throw Interrupted();
  }
}

// What is given must not lead back to the engine.
void set_describe(Rank& self, double seconds, nb::object describe, nb::object place,
                  nb::object alone) {
  const auto describe_wait = [describe = std::move(describe)](
                                 const std::string& text, const std::vector<Sighting>& sightings,
                                 bool aloud) {
    const nb::gil_scoped_acquire hold;
    nb::list seen;
    for (const auto& each : sightings) {
      seen.append(nb::make_tuple(each.rank, decoded(each.name), decoded(each.text), each.holds_up));
    }
    return ask_python<std::string>(describe, decoded(text), seen, aloud);
  };
  const auto find_place = [place = std::move(place)](std::uint32_t rank) {
    const nb::gil_scoped_acquire hold;
    return ask_python<std::string>(place, rank);
  };
  const auto is_alone = [alone = std::move(alone)] {
    const nb::gil_scoped_acquire hold;
    return ask_python<bool>(alone);
  };
  self.engine().waiter().set_describe(seconds, {describe_wait, find_place, is_alone});
}

std::optional<Reduction> reduction_of(
    const std::optional<std::tuple<std::uint32_t, std::uint32_t, bool>>& given) {
  if (!given) return std::nullopt;
  const auto& [dtype, op, average] = *given;
  if (dtype >= dtype_count || op >= op_count) {
    throw std::invalid_argument("no such dtype or operation");
  }
  return Reduction{static_cast<DType>(dtype), static_cast<Op>(op), average};
}

Geometry geometry_of(std::uint32_t ranks, std::uint32_t depth, std::uint32_t slots,
                     std::uint64_t slot_bytes, std::uint32_t lane_slots, std::uint64_t lane_bytes) {
  const Geometry geometry{ranks, depth, slots, slot_bytes, lane_slots, lane_bytes};
  if (const char* const fault = geometry.fault()) throw std::invalid_argument(fault);
  // Far beyond any machine; what is less fits in 64 bits.
  if (!geometry.fits(std::size_t{1} << 60)) {
    throw std::invalid_argument("a region of so many ranks and slots has more than 2^60 bytes");
  }
  return geometry;
}

}  // namespace

Engine& engine_of(nb::handle object) {
  return nb::cast<Rank&>(object).engine();
}

Rank* rank_of(nb::handle object) {
  static const nb::handle type = nb::type<Rank>();
  return object.type().is(type) && nb::inst_ready(object) ? nb::inst_ptr<Rank>(object) : nullptr;
}

void register_engine(nb::module_& module) {
  nb::class_<Plan>(module, "Plan")
      .def(
          "__init__",
          [](Plan* self, std::uint32_t rank, std::uint32_t size, std::uint32_t chunk_count,
             Numbers inputs, Numbers outputs, Numbers scratch, std::uint32_t widest,
             const std::vector<Written>& instructions, std::vector<Numbers> peer_inputs,
             std::vector<Numbers> peer_outputs, const Numbers& remote, Numbers delays,
             std::uint32_t in_flight) {
            new (self)
                Plan(make_plan(rank, size, chunk_count, std::move(inputs), std::move(outputs),
                               std::move(scratch), widest, instructions, std::move(peer_inputs),
                               std::move(peer_outputs), remote, std::move(delays), in_flight));
          },
          nb::arg("rank"), nb::arg("size"), nb::arg("chunk_count"), nb::arg("inputs"),
          nb::arg("outputs"), nb::arg("scratch"), nb::arg("widest"), nb::arg("instructions"),
          nb::arg("peer_inputs") = std::vector<Numbers>{},
          nb::arg("peer_outputs") = std::vector<Numbers>{}, nb::arg("remote") = Numbers{},
          nb::arg("delays") = Numbers{}, nb::arg("in_flight") = 0);
  nb::class_<Call>(module, "Call")
      .def(
          "__init__",
          [](Call* self, const Plan& plan, std::vector<std::uint64_t> lengths,
             std::size_t item_bytes,
             const std::optional<std::tuple<std::uint32_t, std::uint32_t, bool>>& reduction,
             std::size_t slot_bytes, std::string text, std::uint32_t in_flight,
             std::uint64_t cache_bytes) {
            new (self) Call(plan, std::move(lengths), item_bytes, reduction_of(reduction),
                            slot_bytes, in_flight, cache_bytes, std::move(text));
          },
          nb::arg("plan"), nb::arg("lengths"), nb::arg("item_bytes"), nb::arg("reduction").none(),
          nb::arg("slot_bytes"), nb::arg("text"), nb::arg("in_flight") = 0,
          nb::arg("cache_bytes") = std::uint64_t{64} << 20)
      .def_prop_ro("passes", &Call::passes)
      .def_prop_ro("input_bytes", &Call::input_bytes)
      .def_prop_ro("output_bytes", &Call::output_bytes)
      .def_prop_ro("scratch_bytes", &Call::scratch_bytes)
      .def_prop_ro("one_sided",
                   [](const Call& self) { return self.reaches_inputs() || self.reaches_outputs(); })
      .def("set_reached", &Call::set_reached, nb::arg("call"), nb::arg("root").none(),
           nb::arg("meets_to_try"), nb::keep_alive<1, 2>())
      .def_prop_ro("text", &Call::text);
  nb::class_<Rank>(module, "Engine")
      .def(nb::init<int, std::uint32_t, const Rank::Peers&, bool, std::shared_ptr<Carrier>>(),
           nb::arg("fd"), nb::arg("rank"), nb::arg("peers"), nb::arg("crowded"),
           nb::arg("carrier").none() = nb::none())
      .def("execute", &Rank::execute, nb::arg("call"), nb::arg("input").none(),
           nb::arg("output").none(), nb::arg("timeout"), nb::arg("background"),
           nb::arg("owner") = nb::none(), nb::arg("input_owner") = nb::none())
      .def(
          "remember",
          [](Rank& self, nb::handle collective, nb::handle x, nb::handle out, nb::handle root,
             nb::handle op, nb::handle algorithm, nb::handle deterministic, nb::handle call,
             bool is_told) {
            self.remember({collective, x, out, root, op, algorithm, deterministic}, call, is_told);
          },
          nb::arg("collective"), nb::arg("x").none(), nb::arg("out").none(), nb::arg("root").none(),
          nb::arg("op").none(), nb::arg("algorithm").none(), nb::arg("deterministic").none(),
          nb::arg("call"), nb::arg("is_told") = false)
      .def("next_is", &Rank::next_is, nb::arg("call"), nb::arg("timeout"))
      .def(
          "add_symmetric",
          [](Rank& self, std::uint64_t id, const HeldBlock& held, Numbers parts) {
            self.engine().symmetric().add(id, held.block, std::move(parts), self.engine().rank());
          },
          nb::arg("id"), nb::arg("block"), nb::arg("parts"))
      .def(
          "remove_symmetric",
          [](Rank& self, std::uint64_t id) { self.engine().symmetric().remove(id); }, nb::arg("id"))
      .def("is_symmetric", &Rank::is_symmetric, nb::arg("memory"), nb::arg("bytes"))
      .def_prop_ro("has_symmetric",
                   [](Rank& self) { return !self.engine().symmetric().is_empty(); })
      .def("queue", &Rank::queue, nb::arg("more"))
      .def("set_timeout", &Rank::set_timeout, nb::arg("seconds"))
      .def("set_describe", &set_describe, nb::arg("seconds"), nb::arg("describe"), nb::arg("place"),
           nb::arg("alone"))
      .def(
          "signal_in_middle",
          [](Rank& self, int number, int code) { self.engine().signal_in_middle(number, code); },
          nb::arg("number"), nb::arg("code"))
      .def("take_back_signal", [](Rank& self) { return self.engine().take_back_signal(); })
      .def("wait_in_queue", &Rank::wait_in_queue, nb::arg("more"))
      .def("abort", [](Rank& self, const std::string& text) { self.engine().abort(text); })
      .def("mismatch", [](Rank& self, const std::string& text) { self.engine().mismatch(text); })
      .def("peer_lost", [](Rank& self, const std::string& text) { self.engine().peer_lost(text); })
      .def("tell_of_trouble", [](Rank& self) { self.engine().waiter().tell_of_trouble(); })
      .def("check_complete", [](Rank& self) { self.engine().check_complete(); })
      .def("close", [](Rank& self) { self.engine().close(); })
      .def("move", [](Rank& self) { self.engine().move(); })
      .def("forsake", [](Rank& self) { self.engine().forsake(); })
      .def(
          "check",
          [](Rank& self, const Numbers& ranks, bool heard) {
            std::optional<Unheard> unheard;
            if (!heard) unheard.emplace();
            self.engine().waiter().look_at(ranks);
          },
          nb::arg("ranks"), nb::arg("heard") = true)
      .def(
          "has_gone",
          [](Rank& self, std::uint32_t peer) {
            if (peer >= self.engine().region().geometry().ranks) {
              throw std::invalid_argument("no such rank: " + std::to_string(peer));
            }
            return self.engine().waiter().has_gone(peer);
          },
          nb::arg("peer"))
      .def_prop_ro("closed", [](Rank& self) { return self.engine().is_closed(); })
      .def_prop_ro("heard", [](Rank& self) { return self.engine().waiter().knows_of_trouble(); })
      .def_prop_ro("broken", [](Rank& self) { return self.engine().is_broken(); })
      .def_prop_ro("calls", [](Rank& self) { return self.engine().calls(); })
      .def_prop_ro("slot_bytes",
                   [](Rank& self) { return self.engine().region().geometry().slot_bytes; })
      .def_prop_rw(
          "lend", [](Rank& self) { return static_cast<std::uint32_t>(self.engine().lend()); },
          [](Rank& self, std::uint32_t when) {
            if (when > static_cast<std::uint32_t>(Lend::always)) {
              throw std::invalid_argument("lend is 0 (never), 1 (when quicker) or 2 (always)");
            }
            self.engine().set_lend(static_cast<Lend>(when));
          })
      .def_prop_ro("lent", [](Rank& self) { return self.engine().lent(); })
      .def_prop_ro("reached", [](Rank& self) { return self.engine().reaching_calls(); })
      .def(
          "found",
          [](Rank& self, const Call& call) {
            return static_cast<std::uint32_t>(self.engine().found(call));
          },
          nb::arg("call"))
      .def(
          "set_seal", [](Rank& self, std::uint64_t key) { self.engine().set_seal(key); },
          nb::arg("key"))
      .def_prop_rw(
          "far_ns", [](Rank& self) { return self.engine().far_ns(); },
          [](Rank& self, std::uint32_t nanoseconds) { self.engine().set_far_ns(nanoseconds); })
      .def_prop_ro("slots", [](Rank& self) { return self.engine().region().geometry().slots; })
      .def_prop_ro("depth", [](Rank& self) { return self.engine().region().geometry().depth; });
  module.def("repeatable", &make_repeatable, nb::arg("function"));
  module.def(
      "region_bytes",
      [](std::uint32_t ranks, std::uint32_t depth, std::uint32_t slots, std::uint64_t slot_bytes,
         std::uint32_t lane_slots, std::uint64_t lane_bytes) {
        return geometry_of(ranks, depth, slots, slot_bytes, lane_slots, lane_bytes).total_bytes();
      },
      nb::arg("ranks"), nb::arg("depth"), nb::arg("slots"), nb::arg("slot_bytes"),
      nb::arg("lane_slots"), nb::arg("lane_bytes"));
  module.def(
      "format_region",
      [](int fd, std::uint32_t ranks, std::uint32_t depth, std::uint32_t slots,
         std::uint64_t slot_bytes, std::uint32_t lane_slots, std::uint64_t lane_bytes) {
        const auto geometry = geometry_of(ranks, depth, slots, slot_bytes, lane_slots, lane_bytes);
        const Mapping mapping(fd);
        if (mapping.size() < geometry.total_bytes()) {
          throw std::invalid_argument("the file is too small for the region");
        }
        Region::format(mapping.data(), geometry);
      },
      nb::arg("fd"), nb::arg("ranks"), nb::arg("depth"), nb::arg("slots"), nb::arg("slot_bytes"),
      nb::arg("lane_slots"), nb::arg("lane_bytes"));
}

}  // namespace transports
