// What a rank says of its waits: who it waits for, and what the others do.
#include <chrono>
#include <cstdio>

#include "ending.hpp"
#include "waiting.hpp"

namespace transports {
namespace {

// Printable, whatever stands there.
template <std::size_t Words>
std::string read_text(const SharedText<Words>& shared) {
  char text[sizeof shared];
  std::string found(text, shared.get(text));
  for (char& each : found) {
    // Bytes beyond ASCII are parts of characters.
    const auto byte = static_cast<unsigned char>(each);
    if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7f) each = '?';
  }
  return found;
}

}  // namespace

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", seconds);
  return text;
}

std::optional<Failure> Waiter::trouble() const {
  const auto& board = region_.trouble();
  // Acquire: kind and text are complete.
  if (board.state.load(std::memory_order_acquire) != TroubleBoard::published) return std::nullopt;
  // A kind that is none of ours is a failure all the same.
  const auto kind = static_cast<FailureKind>(board.kind.load(std::memory_order_relaxed));
  return Failure(kind, read_text(board.text));
}

void Waiter::throw_trouble() const {
  tell_of_trouble();
  // Seen a moment ago; it may have been written over since.
  throw trouble().value_or(Failure(FailureKind::mismatch, "the ranks' trouble board is damaged"));
}

void Waiter::fail_lost(std::uint32_t peer, const char* what) const {
  fail(FailureKind::peer_lost, name_of(peer) + ended_text(peer) + " before it completed " +
                                   call_of(rank_) + ": rank " + std::to_string(rank_) +
                                   " was waiting for a " + what + " it; its own last call was " +
                                   call_of(peer));
}

std::string Waiter::where_arrays_differ(std::uint32_t peer) const {
  const auto place_of = [this](std::uint32_t rank, Whereabouts Standing::* array) {
    const auto& where = region_.standing(rank).*array;
    const auto block = where.block.load(std::memory_order_relaxed);
    return std::pair{block, where.offset.load(std::memory_order_relaxed)};
  };
  std::string text;
  for (const auto& [name, array] : {std::pair{"x", &Standing::input}, {"out", &Standing::output}}) {
    const auto here = place_of(rank_, array), there = place_of(peer, array);
    if (here == there || here.first == 0 || there.first == 0) continue;
    text += std::string(" (") + name + " must lie at the same place on every rank: here it is at " +
            std::to_string(here.second) + " of block " + std::to_string(here.first) +
            " of symmetric memory, there at " + std::to_string(there.second) + " of block " +
            std::to_string(there.first) + ")";
  }
  return text;
}

std::string Waiter::name_of(std::uint32_t peer) const {
  std::string name = "rank " + std::to_string(peer);
  if (peer < pids_.size()) {
    name += " (pid " + std::to_string(pids_[peer]) + " on " + hosts_[peer] + ")";
  }
  return name;
}

std::string Waiter::ended_text(std::uint32_t peer) const {
  const int pidfd = peer < pidfds_.size() ? pidfds_[peer].get() : -1;
  const auto life = region_.standing(peer).life.load(std::memory_order_acquire);
  if (life == static_cast<std::uint32_t>(Life::closed) ||
      life == static_cast<std::uint32_t>(Life::moved)) {
    return " closed its communicator";
  }
  return " ended" + ending_of(pidfd, pidfd < 0 ? 0 : pids_[peer]);
}

std::string Waiter::call_of(std::uint32_t rank) const {
  const auto& standing = region_.standing(rank);
  const auto entered = standing.entered.load(std::memory_order_acquire);
  if (entered == 0) return "no call yet";
  return read_text(standing.call) + " #" + std::to_string(entered);
}

std::string Waiter::placed_call_of(std::uint32_t rank, std::uint64_t number) const {
  const auto& standing = region_.standing(rank);
  std::string text = call_of(rank);
  const bool is_there = standing.entered.load(std::memory_order_acquire) == number &&
                        standing.completed.load(std::memory_order_relaxed) < number &&
                        standing.is_background.load(std::memory_order_relaxed) == 0;
  if (!describe_.place || !is_there || rank >= pids_.size()) return text;
  const std::string place = describe_.place(rank);
  return place.empty() ? text : text + " at " + place;
}

void Waiter::speak(double waited, double& next, const std::string& text,
                   const std::vector<Sighting>& sightings) const {
  next = 2 * std::max(waited, silence_);
  if (!describe_.wait) return;
  const std::int64_t now = now_ns();
  auto& spoken = region_.header().spoken_ns;
  // Relaxed: an election, nothing is ordered by it. What stands there may be anything.
  auto last = spoken.load(std::memory_order_relaxed);
  // So the difference is reckoned where none overflows.
  const double since = static_cast<double>(now) - static_cast<double>(last);
  const bool was_just_now = since >= 0 && since < silence_ * 0.9e9;
  if (was_just_now || !spoken.compare_exchange_strong(last, now, std::memory_order_relaxed)) return;
  describe_.wait(text, sightings, true);
}

std::string Waiter::with_sightings(const std::string& text,
                                   const std::vector<Sighting>& sightings) const {
  if (describe_.wait) return describe_.wait(text, sightings, false);
  std::string whole = text;
  for (const auto& each : sightings) whole += "; " + each.name + " " + each.text;
  return whole;
}

std::optional<Failure> Waiter::failure_of(Circle& circle, bool in_message) const {
  if (!circle.stands(region_, rank_, in_message, sees_ended())) return std::nullopt;
  std::string text;
  for (const auto rank : circle.ended()) text += name_of(rank) + ended_text(rank) + "; ";
  text += circle.ended().empty() ? "the ranks" : "the ranks that are left";
  text += " wait for each other, and none can go on:";
  for (const auto& link : circle.links()) {
    const auto& standing = region_.standing(link.rank);
    text += "\n  " + name_of(link.rank) + " waits ";
    if (link.in_message) {
      text += "to " + read_text(standing.in_message.what);
    } else {
      const auto number = standing.entered.load(std::memory_order_relaxed);
      text += "in " + placed_call_of(link.rank, number) + " for rank " + std::to_string(link.whom);
    }
  }
  // Had those that have ended not, one of them might have ended a wait.
  return Failure(circle.ended().empty() ? FailureKind::mismatch : FailureKind::peer_lost, text);
}

std::vector<bool> Waiter::holding_up(std::uint32_t whom) const {
  const std::uint32_t ranks = region_.geometry().ranks;
  std::vector<bool> seen(ranks), found(ranks);
  std::vector<std::uint32_t> open{whom};
  while (!open.empty()) {
    const std::uint32_t next = open.back();
    open.pop_back();
    if (next == Waits::kAnybody) {
      for (std::uint32_t rank = 0; rank < ranks; ++rank) {
        if (rank != rank_ && !seen[rank]) open.push_back(rank + 1);
      }
      continue;
    }
    const std::uint32_t rank = next - 1;
    if (rank >= ranks || rank == rank_ || seen[rank]) continue;  // ranks: written by anybody
    seen[rank] = true;
    const auto& standing = region_.standing(rank);
    const auto call = standing.in_call.whom.load(std::memory_order_relaxed);
    const auto message = standing.in_message.whom.load(std::memory_order_relaxed);
    for (const auto each : {call, message}) {
      if (each != Waits::kNobody) open.push_back(each);
    }
    found[rank] = call == Waits::kNobody && message == Waits::kNobody;
  }
  return found;
}

std::vector<Sighting> Waiter::sightings(std::uint32_t whom) const {
  const auto holding = holding_up(whom);
  const auto number = region_.standing(rank_).entered.load(std::memory_order_relaxed);
  const bool is_call = region_.standing(rank_).in_call.whom.load(std::memory_order_relaxed) != 0;
  std::vector<Sighting> found;
  for (std::uint32_t rank = 0; rank < holding.size(); ++rank) {
    if (rank == rank_) continue;
    const bool is_late =
        is_call && region_.standing(rank).entered.load(std::memory_order_relaxed) < number;
    const bool is_asked = whom == rank + 1 || holding[rank] || is_late;
    if (!is_asked && holding.size() > 8) continue;
    const bool can_be_asked = (holding[rank] || is_late) && !has_ended(rank);
    found.push_back({rank, name_of(rank), doing(rank), can_be_asked});
  }
  return found;
}

std::string Waiter::doing(std::uint32_t rank) const {
  const auto& standing = region_.standing(rank);
  const auto& own = region_.standing(rank_);
  std::string text;
  if (standing.in_message.whom.load(std::memory_order_acquire) != Waits::kNobody) {
    text = "waits to " + read_text(standing.in_message.what) + "; it ";
  }
  if (has_ended(rank))
    return text + ended_text(rank).substr(1) + "; its last call was " + call_of(rank);
  const auto entered = standing.entered.load(std::memory_order_acquire);
  if (entered == 0) return text + "has made no call yet";
  if (entered == standing.completed.load(std::memory_order_acquire)) {
    return text + "is in no collective; its last was " + call_of(rank);
  }
  const bool is_mine = own.in_call.whom.load(std::memory_order_relaxed) != Waits::kNobody &&
                       own.entered.load(std::memory_order_relaxed) == entered;
  text += is_mine ? "is in it too" : "is in " + call_of(rank);
  const auto whom = standing.in_call.whom.load(std::memory_order_acquire);
  return text + (whom == Waits::kNobody ? ", and waits for nobody there"
                                        : ", waiting for rank " + std::to_string(whom - 1));
}

}  // namespace transports
