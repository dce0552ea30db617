// Threads that have let go of Python's lock, as Python sees them.
#include "bindings.hpp"
#include "outside.hpp"

namespace nb = nanobind;

namespace transports {

void register_outside(nb::module_& module) {
  module.def("threads_outside", &Outside::threads);
  module.def("forget_threads", &Outside::forget);
}

}  // namespace transports
