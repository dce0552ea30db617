#include "virtual_time.hpp"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>

#include <chrono>
#include <cstdarg>
#include <utility>

namespace fuzzing {
namespace {

constexpr std::int64_t kLookNs = 20'000;  // between two looks at the clock
constexpr std::int64_t kYieldNs = 10'000;

std::int64_t now = 1'000'000'000;
std::function<void()> others;
bool is_others_turn = false;

void pass_time(std::int64_t nanoseconds, bool give_turn) {
  now += nanoseconds;
  if (!give_turn || is_others_turn || !others) return;
  is_others_turn = true;
  others();
  is_others_turn = false;
}

std::int64_t in_nanoseconds(const timespec* time) {
  return time == nullptr ? 0 : time->tv_sec * 1'000'000'000 + time->tv_nsec;
}

}  // namespace

void set_turn(std::function<void()> turn) {
  others = std::move(turn);
}

std::int64_t virtual_now_ns() {
  return now;
}

}  // namespace fuzzing

// In place of the C++ and C library's own, for the engine and this program alone: the fuzzer's
// runtime has a library of its own. Whatever the engine would do to wait, it does here.
std::chrono::steady_clock::time_point std::chrono::steady_clock::now() noexcept {
  fuzzing::pass_time(fuzzing::kLookNs, false);
  return time_point(duration(fuzzing::now));
}

extern "C" {

int sched_yield() noexcept {
  fuzzing::pass_time(fuzzing::kYieldNs, true);
  return 0;
}

int nanosleep(const timespec* time, timespec*) {
  fuzzing::pass_time(fuzzing::in_nanoseconds(time), true);
  return 0;
}

// futex and membarrier; the engine calls no other one by number as long as no process is watched.
long syscall(long number, ...) noexcept {
  va_list rest;
  va_start(rest, number);
  long result = 0;
  if (number == SYS_futex) {
    va_arg(rest, const void*);
    const bool waits = (va_arg(rest, int) & 0x7f) == 0;
    va_arg(rest, std::uint32_t);
    const timespec* const time = va_arg(rest, const timespec*);
    if (waits) fuzzing::pass_time(fuzzing::in_nanoseconds(time), true);
  } else if (number != SYS_membarrier) {
    errno = ENOSYS;
    result = -1;
  }
  va_end(rest);
  return result;
}

}  // extern "C"
