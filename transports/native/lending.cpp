#include "lending.hpp"

#include <algorithm>

namespace transports {
namespace {

// Runs of a call: so many through slots, as many with the kernel's copies, then two through slots
// while all write down and read what they have found, and so many as it holds for.
constexpr std::uint32_t kTrial = 8;
constexpr std::uint32_t kLongTrial = 3;  // as they take long, and differ less
constexpr std::uint32_t kReading = 2;
constexpr std::uint32_t kHolds = 512;

// Of the time through slots, what has to be gained where ranks must meet for it.
constexpr std::uint64_t kWorth = 8;

}  // namespace

bool LendingTrials::begin(std::uint64_t call, bool is_long, bool meets) {
  place_ = place_of(call);
  Entry& entry = entries_[place_];
  if (entry.call != call || entry.runs == kHolds) {
    entry = Entry{call};
    // What was found of another, or before, is not to be read by a rank that looks for what is not
    // there yet. Relaxed: as in end().
    region_.standing(rank_).trials[first_ + place_].call.store(0, std::memory_order_relaxed);
  }
  entry.last = ++time_;
  entry.trial = is_long ? kLongTrial : kTrial;
  const auto run = entry.runs++;
  if (run < 2 * entry.trial + kReading) {
    entry.lends = run / entry.trial == 1;
  } else if (run == 2 * entry.trial + kReading) {
    entry.lends = is_lending_quicker(place_, meets);
  }
  return entry.lends;
}

bool LendingTrials::is_trying() const {
  const Entry& entry = entries_[place_];
  return entry.runs <= 2 * entry.trial + kReading;
}

Found LendingTrials::found(std::uint64_t call) const {
  const Entry& entry = entries_[place_of(call)];
  if (entry.call != call || entry.runs == 0) return Found::nothing;
  if (entry.runs <= 2 * entry.trial + kReading) return Found::trying;
  return entry.lends ? Found::copies : Found::slots;
}

void LendingTrials::refuse() {
  Entry& entry = entries_[place_];
  entry.lends = false;
  entry.runs = std::max(entry.runs, 2 * entry.trial + kReading + 1);
}

std::size_t LendingTrials::place_of(std::uint64_t call) const {
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
  if (entry.runs > 2 * entry.trial) return;
  auto& least = entry.least[entry.lends];
  least = std::min(least, nanoseconds);
  if (entry.runs != 2 * entry.trial) return;
  // Relaxed: the messages of the runs until it is read order it.
  auto& shown = region_.standing(rank_).trials[first_ + place_];
  shown.call.store(entry.call, std::memory_order_relaxed);
  for (std::size_t i = 0; i < 2; ++i)
    shown.least[i].store(entry.least[i], std::memory_order_relaxed);
}

bool LendingTrials::is_lending_quicker(std::size_t place, bool meets) const {
  std::array<std::uint64_t, 2> slowest{};
  for (std::uint32_t rank = 0; rank < region_.geometry().ranks; ++rank) {
    const Trial* const first =
        region_.standing(rank).trials + first_ + place / kTrialWays * kTrialWays;
    const Trial* const shown = std::find_if(first, first + kTrialWays, [&](const Trial& each) {
      return each.call.load(std::memory_order_relaxed) == entries_[place].call;
    });
    if (shown == first + kTrialWays) return false;
    for (std::size_t i = 0; i < 2; ++i) {
      slowest[i] = std::max(slowest[i], shown->least[i].load(std::memory_order_relaxed));
    }
  }
  // What it takes to meet is not counted, since waiting for who is late cannot be told from it; as
  // nobody meets once it is known to be slower, it must be worth it.
  return slowest[1] < (meets ? slowest[0] / kWorth * (kWorth - 1) : slowest[0]);
}

}  // namespace transports
