#include "lending.hpp"

#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

namespace transports {
namespace {

// Runs of a call: so many through slots, as many lent, then two through slots while all write down
// and read what they have found, and so many as it holds for.
constexpr std::uint32_t kTrial = 8;
constexpr std::uint32_t kFound = 2 * kTrial + 2;
constexpr std::uint32_t kHolds = 512;

}  // namespace

bool LendingTrials::begin(std::uint64_t call) {
  place_ = (call * 0x9e3779b97f4a7c15u) >> 58;
  static_assert(kTrialPlaces == 64);
  Entry& entry = entries_[place_];
  if (entry.call != call || entry.runs == kHolds) entry = Entry{call};
  const auto run = entry.runs++;
  if (run < kFound) {
    entry.lends = run / kTrial == 1;
  } else if (run == kFound) {
    entry.lends = is_lending_quicker(place_);
  }
  return entry.lends;
}

void LendingTrials::end(std::uint64_t nanoseconds) {
  Entry& entry = entries_[place_];
  if (entry.runs > 2 * kTrial) return;
  auto& least = entry.least[entry.lends];
  least = std::min(least, nanoseconds);
  if (entry.runs != 2 * kTrial) return;
  // Relaxed: the messages of the runs until it is read order it.
  auto& shown = region_.standing(rank_).trials[place_];
  shown.call.store(entry.call, std::memory_order_relaxed);
  for (std::size_t i = 0; i < 2; ++i)
    shown.least[i].store(entry.least[i], std::memory_order_relaxed);
}

bool LendingTrials::is_lending_quicker(std::size_t place) const {
  std::array<std::uint64_t, 2> slowest{};
  for (std::uint32_t rank = 0; rank < region_.geometry().ranks; ++rank) {
    const auto& shown = region_.standing(rank).trials[place];
    if (shown.call.load(std::memory_order_relaxed) != entries_[place].call) return false;
    for (std::size_t i = 0; i < 2; ++i) {
      slowest[i] = std::max(slowest[i], shown.least[i].load(std::memory_order_relaxed));
    }
  }
  return slowest[1] < slowest[0];
}

Pulled pull(std::uint32_t pid, std::uint64_t address, std::byte* into, std::uint64_t bytes) {
  while (bytes != 0) {
    const iovec local{into, bytes};
    const iovec remote{reinterpret_cast<void*>(address), bytes};
    const auto done = ::process_vm_readv(static_cast<pid_t>(pid), &local, 1, &remote, 1, 0);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return done < 0 && errno == ESRCH ? Pulled::gone : Pulled::refused;
    into += done;
    address += static_cast<std::uint64_t>(done);
    bytes -= static_cast<std::uint64_t>(done);
  }
  return Pulled::done;
}

bool may_pull(std::uint32_t pid) {
  // Nothing lies at address 0: who may look is told so, others that they may not.
  std::byte nothing[1];
  const iovec local{nothing, 1};
  const iovec remote{nullptr, 1};
  return ::process_vm_readv(static_cast<pid_t>(pid), &local, 1, &remote, 1, 0) < 0 &&
         errno == EFAULT;
}

}  // namespace transports
