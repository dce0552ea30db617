#include "lending.hpp"

#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

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
  place_ = place_of(call);
  Entry& entry = entries_[place_];
  if (entry.call != call || entry.runs == kHolds) entry = Entry{call};
  entry.last = ++time_;
  const auto run = entry.runs++;
  if (run < kFound) {
    entry.lends = run / kTrial == 1;
  } else if (run == kFound) {
    entry.lends = is_lending_quicker(place_);
  }
  return entry.lends;
}

std::size_t LendingTrials::place_of(std::uint64_t call) {
  const std::size_t set = ((call * 0x9e3779b97f4a7c15u) >> 40) % (kTrialPlaces / kTrialWays);
  const auto first = entries_.begin() + static_cast<std::ptrdiff_t>(set * kTrialWays);
  const auto last = first + kTrialWays;
  auto found = std::find_if(first, last, [&](const Entry& each) { return each.call == call; });
  if (found == last) {
    found = std::min_element(
        first, last, [](const Entry& one, const Entry& other) { return one.last < other.last; });
  }
  return static_cast<std::size_t>(found - entries_.begin());
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
    const Trial* const first = region_.standing(rank).trials + place / kTrialWays * kTrialWays;
    const Trial* const shown = std::find_if(first, first + kTrialWays, [&](const Trial& each) {
      return each.call.load(std::memory_order_relaxed) == entries_[place].call;
    });
    if (shown == first + kTrialWays) return false;
    for (std::size_t i = 0; i < 2; ++i) {
      slowest[i] = std::max(slowest[i], shown->least[i].load(std::memory_order_relaxed));
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
    if (done <= 0) {
      if (done == 0 || errno == EFAULT) return Pulled::nothing_there;
      return errno == ESRCH ? Pulled::gone : Pulled::forbidden;
    }
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

bool is_traceable() {
  return ::prctl(PR_GET_DUMPABLE) == 1;
}

bool PullableMemory::holds(const std::byte* memory, std::uint64_t bytes) {
  auto& known = known_[reinterpret_cast<std::uintptr_t>(memory) / kLine % known_.size()];
  if (known.memory == memory && known.bytes == bytes) return true;
  std::byte first_and_last[2];
  const iovec local{first_and_last, 2};
  iovec remote[2];
  for (auto& each : remote) each.iov_len = 1;
  remote[0].iov_base = const_cast<std::byte*>(memory);
  remote[1].iov_base = const_cast<std::byte*>(memory + bytes - 1);
  if (::process_vm_readv(::getpid(), &local, 1, remote, 2, 0) != 2) return false;
  known = {memory, bytes};
  return true;
}

}  // namespace transports
