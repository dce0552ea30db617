// The functions of the MPI library that the program has loaded.
//
// By their addresses, so that nothing of MPI is needed to build this, and any library serves: its
// handles are ints in some and pointers in others, but either goes to a function in a register as
// wide as a pointer, and either fits where a function leaves one.
#pragma once

#include <cstdint>

namespace transports {

struct MpiFunctions {
  using Handle = std::uintptr_t;
  struct Request {
    Handle handle = 0;
  };
  // No library's status is larger.
  struct Status {
    alignas(16) std::byte bytes[128];
  };

  int (*isend)(const void*, int, Handle, int, int, Handle, Request*);
  int (*irecv)(void*, int, Handle, int, int, Handle, Request*);
  int (*recv_init)(void*, int, Handle, int, int, Handle, Request*);
  int (*start)(Request*);
  int (*test)(Request*, int*, Status*);
  int (*cancel)(Request*);
  int (*request_free)(Request*);
  int (*error_string)(int, char*, int*);
  Handle communicator;  // of all ranks of the job, for nobody else; its errors return
  Handle byte;          // the type
  int any_source;
};

}  // namespace transports
