// The MPI library's own allreduce, called as a known call is: nothing of Python in between.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "mpi_functions.hpp"

namespace transports {

struct MpiCall {
  using Handle = MpiFunctions::Handle;

  int (*allreduce)(const void*, void*, int, Handle, Handle, Handle);
  const void* in_place;  // what MPI takes for an x that is out
  int count;
  Handle type, op, communicator;

  // Throws std::runtime_error.
  void run(const std::byte* input, std::byte* output) const {
    const void* const from = input == output ? in_place : input;
    const int code = allreduce(from, output, count, type, op, communicator);
    if (code != 0) throw std::runtime_error("MPI_Allreduce failed, code " + std::to_string(code));
  }
};

}  // namespace transports
