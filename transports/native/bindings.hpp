// What each bind_*.cpp registers, a concept a file.
#pragma once

#include <nanobind/nanobind.h>

namespace transports {

class Engine;

void register_failures(nanobind::module_& module);
void register_kernels(nanobind::module_& module);
void register_engine(nanobind::module_& module);
void register_symmetric(nanobind::module_& module);
void register_point_to_point(nanobind::module_& module);
void register_limits(nanobind::module_& module);

// The engine in a Python object of the class Engine; throws std::bad_cast of any other.
Engine& engine_of(nanobind::handle object);

}  // namespace transports
