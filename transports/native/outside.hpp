// Outside Python's lock: threads that wait or work here have let go of it, and will want it back.
//
// Once the interpreter ends, a thread that comes back for the lock is ended there and then, amid
// frames that cannot be unwound so, and the whole process is aborted. So whoever ends the
// interpreter first sees to it that nobody is outside.
#pragma once

#include <nanobind/nanobind.h>

namespace transports {

// Lets go of the lock, which the thread has, for a scope.
class Outside {
 public:
  Outside() = default;
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;

  // Of this process; asked, as all that is written here, with the lock held.
  static int threads() { return threads_; }
  // In a child of fork: they did not come along.
  static void forget() { threads_ = 0; }

 private:
  struct Counted {
    Counted() { ++threads_; }
    ~Counted() { --threads_; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
  };

  // Plain, since the lock guards it.
  inline static int threads_ = 0;

  const Counted counted_;  // the first to come and the last to go, hence with the lock held
  const nanobind::gil_scoped_release free_;
};

}  // namespace transports
