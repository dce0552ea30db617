// What reaches the ranks of other hosts, as Python sees it; transports/_native.pyi says how.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "carrier.hpp"
#include "deadline.hpp"
#include "mpi_call.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

using Numbers = std::vector<std::uint64_t>;
constexpr std::size_t kFunctions = 8;

// In the order of transports/mpi/library.py.
MpiFunctions functions_at(const Numbers& addresses, std::uint64_t communicator, std::uint64_t byte,
                          int any_source) {
  if (addresses.size() != kFunctions) {
    throw std::invalid_argument("expected the addresses of 8 functions, found " +
                                std::to_string(addresses.size()));
  }
  MpiFunctions found{};
  std::size_t next = 0;
  const auto take = [&](auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(addresses[next++]);
    if (function == nullptr) throw std::invalid_argument("a function of MPI is missing");
  };
  take(found.isend);
  take(found.irecv);
  take(found.recv_init);
  take(found.start);
  take(found.test);
  take(found.cancel);
  take(found.request_free);
  take(found.error_string);
  found.communicator = communicator;
  found.byte = byte;
  found.any_source = any_source;
  return found;
}

}  // namespace

void register_carrier(nb::module_& module) {
  nb::class_<MpiCall>(module, "MpiCall")
      .def(
          "__init__",
          [](MpiCall* self, std::uint64_t allreduce, std::uint64_t in_place, int count,
             std::uint64_t type, std::uint64_t op, std::uint64_t communicator) {
            new (self) MpiCall{reinterpret_cast<decltype(MpiCall::allreduce)>(allreduce),
                               reinterpret_cast<const void*>(in_place),
                               count,
                               type,
                               op,
                               communicator};
          },
          nb::arg("allreduce"), nb::arg("in_place"), nb::arg("count"), nb::arg("type"),
          nb::arg("op"), nb::arg("communicator"));
  nb::class_<Deadline>(module, "Deadline")
      .def(nb::init<double, double, std::string>(), nb::arg("silence"), nb::arg("timeout"),
           nb::arg("what"))
      .def("end", &Deadline::end);
  nb::class_<Carrier>(module, "Carrier")
      .def(
          "__init__",
          [](Carrier* self, int fd, std::uint32_t rank, const Numbers& functions,
             std::uint64_t communicator, std::uint64_t byte, int any_source,
             std::vector<std::int32_t> places, std::vector<std::uint32_t> hosts, std::int32_t tag) {
            new (self) Carrier(fd, rank, functions_at(functions, communicator, byte, any_source),
                               std::move(places), std::move(hosts), tag);
          },
          nb::arg("fd"), nb::arg("rank"), nb::arg("functions"), nb::arg("communicator"),
          nb::arg("byte"), nb::arg("any_source"), nb::arg("places"), nb::arg("hosts"),
          nb::arg("tag"))
      .def("close", &Carrier::close)
      .def("progress", &Carrier::progress)
      // It waits for the thread, which may want nothing of Python's, but for a step to end.
      .def("stop", &Carrier::stop, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("done", &Carrier::is_done)
      .def_prop_ro("broken", &Carrier::is_broken)
      .def_prop_ro("sent_payload", &Carrier::sent_payload);
}

}  // namespace transports
