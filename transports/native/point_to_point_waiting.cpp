// Waiting for operations of point-to-point: how long, how, and what else may end it.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "point_to_point.hpp"

namespace transports {
namespace {

constexpr std::int64_t kLookEveryNs = 5'000'000;
constexpr std::uint32_t kLooksPerCensus = 20;
constexpr std::uint32_t kPassesBetweenClocks = 256;
constexpr double kForever = 1e300;

std::string message_text(const Operation& operation) {
  return operation.what.text() + " with " +
         (operation.tag == kAny ? "any tag" : "tag " + std::to_string(operation.tag));
}

std::string whole_text(const Operation& operation, const std::string& peer) {
  return (operation.is_send ? "send " : "receive ") + message_text(operation) +
         (operation.is_send ? " to " : " from ") + peer;
}

}  // namespace

void PointToPoint::check_owner(const Operation& operation) const {
  if (operation.owner != this) {
    throw std::invalid_argument("the operation was posted on another communicator");
  }
}

void PointToPoint::check(const Operation& operation) const {
  if (operation.has_failed()) waiter_.tell_of_trouble();
  operation.check();
}

void PointToPoint::wait(Operation& operation, double timeout_seconds, bool fatal) {
  check_owner(operation);
  refuse_in_child();
  const Counted waiting(waiting_);
  const Carrier::Watch watch(waiter_.carrier());
  const Patience patience = waiter_.patience();
  const std::uint32_t before_sleep = patience.spins + patience.yields;
  std::int64_t started = 0, looked = 0;
  std::uint32_t idle = 0;  // passes since something moved
  double next_speech = 0;
  std::optional<ShownWait> shown;
  Circle circle;
  std::uint32_t looks = 0;
  for (std::uint32_t pass = 1; !operation.is_done(); ++pass) {
    idle = try_progress() ? 0 : idle + 1;
    if (operation.is_done()) break;
    if (idle > patience.spins || pass % kPassesBetweenClocks == 0) {
      const std::int64_t now = now_ns();
      if (started == 0) started = looked = now;
      const double waited = static_cast<double>(now - started) * 1e-9;
      if (now - looked >= kLookEveryNs || waited >= timeout_seconds) {
        looked = now;
        if (!shown) show(operation, shown);
        look(operation, waited, timeout_seconds, fatal, next_speech);
        if (operation.is_done()) break;  // only a look that found it under way counts for others
        shown->looked();
        // A wait that ends by itself is part of no circle: the program goes on.
        if (fatal && ++looks % kLooksPerCensus == 0) look_for_circle(operation, circle, *shown);
      }
    }
    if (idle <= patience.spins) {
      pause_briefly();
    } else if (idle <= before_sleep) {
      sched_yield();
    } else {
      sleep(operation, idle - before_sleep);
    }
  }
  check(operation);
}

void PointToPoint::look_for_circle(Operation& operation, Circle& circle, ShownWait& shown) {
  std::vector<bool> left(ranks());
  for (std::uint32_t peer = 0; peer < ranks(); ++peer) left[peer] = waiter_.has_ended(peer);
  {
    const Hold hold(*this);
    progress();  // after the ends were seen: what those peers had posted has come
    have_left_ = left;
    if (is_moving_) show_moving();
    bool is_untaken = false;
    for (std::uint32_t peer = 0; peer < ranks(); ++peer) {
      is_untaken |= !left[peer] && !outboxes_[peer].lane.is_taken();
    }
    region_.standing(rank()).is_untaken.store(is_untaken, std::memory_order_relaxed);
  }
  // From now on this wait may be part of a circle.
  shown.set_alone(waiter_.is_circle_possible(true) && waiter_.is_alone());
  const auto failure = waiter_.failure_of(circle, true);
  if (!failure) return;
  const Hold hold(*this);
  progress();
  if (!operation.is_done() && !broken_) give_up(failure->kind(), failure->what());
}

bool PointToPoint::test(Operation& operation) {
  check_owner(operation);
  refuse_in_child();
  if (!operation.is_done()) try_progress();
  if (!operation.is_done()) {
    const std::int64_t now = now_ns();
    if (now - tested_ns_.load(std::memory_order_relaxed) >= kLookEveryNs) {
      tested_ns_.store(now, std::memory_order_relaxed);
      double never = kForever;
      look(operation, 0, kForever, true, never);
    }
  }
  if (!operation.is_done()) return false;
  check(operation);
  return true;
}

bool PointToPoint::try_progress() {
  const bool has_come = waiter_.carry();
  if (callers_.load(std::memory_order_relaxed) != 0) return has_come;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  return (lock.owns_lock() && progress()) || has_come;
}

void PointToPoint::show(Operation& operation, std::optional<ShownWait>& shown) {
  auto& waits = region_.standing(rank()).in_message;
  std::int32_t peer;
  {
    const Hold hold(*this);
    peer = operation.peer;
    // In a few words: there is not much room.
    waits.what.set(
        whole_text(operation, peer == kAny ? "any rank" : "rank " + std::to_string(peer)));
  }
  shown.emplace(waits, peer == kAny ? Waits::kAnybody : static_cast<std::uint32_t>(peer) + 1);
}

void PointToPoint::look(Operation& operation, double waited, double timeout, bool fatal,
                        double& next_speech) {
  try {
    waiter_.look_at_signals();  // takes Python's lock, hence never under ours
  } catch (...) {
    const Hold hold(*this);
    if (!closed_ && !operation.is_done()) thread_.ring();  // nobody waits for it now
    throw;
  }
  std::int32_t peer;
  {
    const Hold hold(*this);
    peer = operation.peer;
  }
  const bool ended = has_ended(peer);
  const bool is_late = waited >= timeout;
  std::string text;
  if (is_late || waiter_.is_time_to_speak(waited, next_speech)) {
    // Python's lock is taken for this, too.
    const auto sightings =
        waiter_.sightings(peer == kAny ? Waits::kAnybody : static_cast<std::uint32_t>(peer) + 1);
    {
      const Hold hold(*this);
      text = waiting_text(operation, waited);
    }
    if (is_late) {
      text = waiter_.with_sightings(text + (fatal ? "" : "; it goes on"), sightings);
    } else {
      waiter_.speak(waited, next_speech, text, sightings);
    }
  }
  const Hold hold(*this);
  progress();  // after the peer's end was seen: what it had posted before counts
  if (operation.is_done()) return;
  if (const auto trouble = waiter_.trouble()) return break_off(*trouble);
  if (ended && operation.peer == peer) {
    give_up(FailureKind::peer_lost, lost_text(operation));
  } else if (is_late && !fatal) {
    thread_.ring();  // nobody waits for it now
    throw Failure(FailureKind::timeout, text);
  } else if (is_late) {
    give_up(FailureKind::timeout, text);
  }
}

void PointToPoint::sleep(Operation& operation, std::uint32_t naps) {
  const std::atomic<std::uint32_t>* counter = nullptr;
  std::uint32_t awaited = 0;
  {
    const Hold hold(*this);
    if (progress() || operation.is_done()) return;
    std::int32_t peer = operation.peer;
    if (peer == kAny && ranks() == 2) peer = 1 - static_cast<std::int32_t>(rank());
    if (peer != kAny && peer != static_cast<std::int32_t>(rank())) {
      const auto& outgoing = outboxes_[peer].lane;
      const auto& incoming = inboxes_[peer].lane;
      const bool wants_room = operation.is_send && outgoing.was_full();
      counter = wants_room ? &outgoing.released() : &incoming.sequence();
      awaited = wants_room ? outgoing.awaited() : incoming.awaited();
    }
  }
  // Never long: other peers may move other messages meanwhile.
  if (counter != nullptr) return waiter_.sleep(*counter, awaited, std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::microseconds(std::min(50u * naps, 1000u)));
}

bool PointToPoint::has_ended(std::int32_t peer) const {
  if (peer != kAny) return waiter_.has_ended(static_cast<std::uint32_t>(peer));
  // Of a message from any rank: once all the others have, and there are others.
  bool all = ranks() > 1;
  for (std::uint32_t other = 0; all && other < ranks(); ++other) {
    all = other == rank() || waiter_.has_ended(other);
  }
  return all;
}

std::string PointToPoint::lost_text(const Operation& operation) const {
  const std::string self = "rank " + std::to_string(rank());
  if (operation.peer == kAny) {
    return "every other rank ended before one sent " + message_text(operation) + " to " + self;
  }
  const auto peer = static_cast<std::uint32_t>(operation.peer);
  return waiter_.name_of(peer) + waiter_.ended_text(peer) + " before it " +
         (operation.is_send ? "received " + message_text(operation) + " from " + self
                            : "sent " + message_text(operation) + " to " + self);
}

std::string PointToPoint::waiting_text(const Operation& operation, double waited) const {
  return "rank " + std::to_string(rank()) + " has waited " + seconds_text(waited) + " s to " +
         whole_text(operation, operation.peer == kAny
                                   ? "any rank"
                                   : waiter_.name_of(static_cast<std::uint32_t>(operation.peer)));
}

}  // namespace transports
