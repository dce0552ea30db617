// transports._native: the native engine and its kernels.
#include "bindings.hpp"

NB_MODULE(_native, module) {
  module.doc() = "Collectives over shared memory at native speed; see transports/_native.pyi.";
  transports::register_failures(module);
  transports::register_kernels(module);
  transports::register_symmetric(module);
  transports::register_carrier(module);
  transports::register_engine(module);
  transports::register_point_to_point(module);
  transports::register_limits(module);
  transports::register_outside(module);
}
