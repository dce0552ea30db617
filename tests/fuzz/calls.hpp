// The calls that a victim makes: small plans of every kind of step.
#pragma once

#include "hostile.hpp"
#include "program.hpp"

namespace fuzzing {

// One of a few plans, at lengths, an element type and an operation of the fuzzer's choice.
transports::Call make_call(Bytes& bytes, const transports::Geometry& geometry, std::uint32_t rank);

}  // namespace fuzzing
