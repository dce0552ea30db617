// What each bind_*.cpp registers, a concept a file.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>

namespace transports {

class Engine;
class Rank;

void register_failures(nanobind::module_& module);
void register_kernels(nanobind::module_& module);
void register_carrier(nanobind::module_& module);
void register_engine(nanobind::module_& module);
void register_symmetric(nanobind::module_& module);
void register_point_to_point(nanobind::module_& module);
void register_limits(nanobind::module_& module);
void register_outside(nanobind::module_& module);

// The engine in a Python object of the class Engine; throws std::bad_cast of any other.
Engine& engine_of(nanobind::handle object);
// The rank in it, or nullptr if it is something else.
Rank* rank_of(nanobind::handle object);

// Sets the error of Python that a failure of the engine is; rethrows what is none.
void translate_failure(const std::exception_ptr& failure, void*);

}  // namespace transports
