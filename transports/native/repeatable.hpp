// A method of Python that first looks whether the same call was made before: then the engine runs
// it at once, and no line of Python is executed.
#pragma once

#include <nanobind/nanobind.h>

namespace transports {

// `function` is a collective as a method of an object whose `_engine` is a Rank: its name is the
// collective's, its first argument the array (a barrier has none), all others are keyword-only.
// What comes back behaves as `function` does in every other respect.
nanobind::object make_repeatable(nanobind::handle function);

}  // namespace transports
