// Sleeping in the kernel until a word of shared memory changes.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>

namespace transports {

// Shared, not FUTEX_PRIVATE: the word may be in memory of several processes.
inline long futex(const std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
                  const timespec* timeout) {
  return syscall(SYS_futex, reinterpret_cast<const std::uint32_t*>(&word), operation, value,
                 timeout, nullptr, 0);
}

// Sleeps if `word` is `seen` still, until somebody wakes it, at most so long.
inline void futex_sleep(const std::atomic<std::uint32_t>& word, std::uint32_t seen,
                        std::chrono::nanoseconds longest) {
  const timespec timeout{longest.count() / 1'000'000'000, longest.count() % 1'000'000'000};
  futex(word, FUTEX_WAIT, seen, &timeout);
}

// Whoever sleeps on `word`, of any process.
inline void futex_wake(const std::atomic<std::uint32_t>& word) {
  futex(word, FUTEX_WAKE, INT_MAX, nullptr);
}

}  // namespace transports
