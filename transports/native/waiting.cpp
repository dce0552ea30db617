#include "waiting.hpp"

#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "expedited.hpp"
#include "futex.hpp"

namespace transports {
namespace {

// Spinning costs nothing while every rank has a core; with more ranks than cores it holds up the
// very rank it waits for.
constexpr Patience kOwnCore{4000, 200};
constexpr Patience kCrowded{20, 200};
constexpr Patience kBackground{20, 10};
constexpr std::chrono::milliseconds kLookEvery{5};
// Between looks at what has come from other hosts: at first, and at most.
constexpr std::chrono::microseconds kCarryEvery{20}, kCarryAtLeastEvery{500};
constexpr int kLooksPerCensus = 20;  // between looks at the ranks that are not waited for
constexpr std::int64_t kTellingNs = 100'000'000;  // for another rank to write its trouble down

}  // namespace

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Waiter::Waiter(const Region& region, std::uint32_t rank, const std::vector<Peer>& peers,
               bool crowded)
    : region_(region),
      rank_(rank),
      eager_(crowded ? kCrowded : kOwnCore),
      expedited_(register_for_expedited_fences()) {
  region_.standing(rank).expedited.store(expedited_, std::memory_order_relaxed);
  for (const auto& peer : peers) {
    hosts_.push_back(peer.host);
    pids_.push_back(peer.pid);
    pidfds_.emplace_back(peer.pidfd);
  }
}

bool Waiter::look_for_expedited() const {
  for (std::uint32_t rank = 0; rank < region_.geometry().ranks; ++rank) {
    if (region_.standing(rank).expedited.load(std::memory_order_relaxed) == 0) return false;
  }
  return true;
}

void Waiter::begin(double timeout_seconds, bool background, OnceSlow once_slow) {
  if (!all_expedited_.load(std::memory_order_relaxed) && look_for_expedited()) {
    all_expedited_.store(true, std::memory_order_relaxed);
  }
  once_slow_ = once_slow;
  patience_ = background ? kBackground : eager_;
  if (carrier_ != nullptr) patience_.spins = 0;  // what is waited for does not come by itself
  timeout_ = timeout_seconds;
  started_ns_ = 0;  // the clock is read only once a wait turns slow
  next_speech_ = 0;
}

void Waiter::await_slowly(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
                          std::uint32_t peer, const char* what) {
  if (started_ns_ == 0) started_ns_ = now_ns();
  if (once_slow_.run != nullptr) {
    once_slow_.run(once_slow_.with);
    once_slow_ = {};
  }
  const Carrier::Watch watch(carrier_);
  for (std::uint32_t yield = 0; yield < patience_.yields; ++yield) {
    if (!carry()) sched_yield();
    if (reached(counter.load(std::memory_order_acquire), wanted)) return;
  }
  ShownWait shown(region_.standing(rank_).in_call, peer + 1);
  for (int looks = 1; !reached(counter.load(std::memory_order_acquire), wanted); ++looks) {
    sleep(counter, wanted, kLookEvery);
    if (reached(counter.load(std::memory_order_acquire), wanted)) return;
    const bool ended = has_ended(peer);
    // Looked at after the peer's end was seen: what it had posted before counts.
    if (reached(counter.load(std::memory_order_acquire), wanted)) return;
    shown.looked();
    look(peer, what);
    if (ended) fail_lost(peer, what);
    if (looks % kLooksPerCensus == 0) {
      look_for_lost();
      look_for_mismatch();
      shown.set_alone(is_circle_possible(false) && is_alone());
      if (const auto failure = failure_of(circle_, false)) fail(failure->kind(), failure->what());
    }
  }
}

void Waiter::look_at_any_trouble() const {
  const auto& state = region_.trouble().state;
  if (state.load(std::memory_order_acquire) == TroubleBoard::none) return;
  const auto began = now_ns();
  do {
    look_at_trouble();
    sched_yield();
  } while (now_ns() - began < kTellingNs);
  throw Failure(FailureKind::aborted, "a rank gave up, and did not say why");
}

void Waiter::look_at(const std::vector<std::uint32_t>& peers) const {
  look_at_trouble();
  for (const auto peer : peers) {
    if (peer == rank_ || peer >= pids_.size() || !has_ended(peer)) continue;
    look_at_trouble();
    fail(FailureKind::peer_lost,
         name_of(peer) + ended_text(peer) + "; its last call was " + call_of(peer));
  }
}

void Waiter::look_for_lost() const {
  const auto call = region_.standing(rank_).entered.load(std::memory_order_relaxed);
  for (std::uint32_t peer = 0; peer < pids_.size(); ++peer) {
    if (peer == rank_ || !has_ended(peer)) continue;
    // Looked at after its end was seen. The rank that is waited for may be late for the call, and
    // so not know yet what it will never get.
    const auto completed = is_remote(peer)
                               ? carrier_->completed_by(peer)
                               : region_.standing(peer).completed.load(std::memory_order_acquire);
    if (completed < call) {
      fail(FailureKind::peer_lost, name_of(peer) + ended_text(peer) + " before it completed " +
                                       call_of(rank_) + "; its own last call was " + call_of(peer));
    }
  }
}

void Waiter::look_for_mismatch() const {
  // Ranks that only send to, or only wait for, others than those they should never see a message
  // of each other's call.
  const auto& mine = region_.standing(rank_);
  const auto number = mine.entered.load(std::memory_order_relaxed);
  const auto stamp = mine.stamp_of(number).load(std::memory_order_relaxed);
  if (stamp == 0) return;
  for (std::uint32_t peer = 0; peer < region_.geometry().ranks; ++peer) {
    const auto& other = region_.standing(peer);
    const auto theirs = other.entered.load(std::memory_order_acquire);
    // One that is in the next call already has left the stamp of this one where it was.
    if (theirs != number && theirs != number + 1) continue;
    // Acquire keeps the second look behind the stamp: while the number stands, it was of this call.
    const auto found = other.stamp_of(number).load(std::memory_order_acquire);
    if (found == 0 || found == stamp || other.entered.load(std::memory_order_acquire) != theirs) {
      continue;
    }
    const bool is_past = theirs != number;
    fail(FailureKind::mismatch, "ranks are in different calls: rank " + std::to_string(rank_) +
                                    " has " + placed_call_of(rank_, number) + ", rank " +
                                    std::to_string(peer) + " has " + placed_call_of(peer, theirs) +
                                    (is_past ? " and had another call #" + std::to_string(number)
                                             : where_arrays_differ(peer)));
  }
}

void Waiter::sleep(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
                   std::chrono::nanoseconds longest) const {
  if (carrier_ == nullptr) return doze(counter, wanted, longest);
  const Carrier::Watch watch(carrier_);
  std::chrono::nanoseconds nap = kCarryEvery;
  const std::int64_t until = now_ns() + longest.count();
  while (!reached(counter.load(std::memory_order_acquire), wanted) && now_ns() < until) {
    if (carry()) {
      nap = kCarryEvery;
    } else {
      doze(counter, wanted, nap);
      nap = std::min<std::chrono::nanoseconds>(2 * nap, kCarryAtLeastEvery);
    }
  }
}

void Waiter::doze(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
                  std::chrono::nanoseconds longest) const {
  auto& sleepers = region_.standing(rank_).sleepers;
  sleepers.fetch_add(1, std::memory_order_relaxed);
  if (expedited_) {  // pairs with fence_before_wake()
    expedited_fence();
  } else {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  const std::uint32_t seen = counter.load(std::memory_order_acquire);
  if (!reached(seen, wanted)) {
    futex_sleep(counter, seen, longest);
  }
  sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void Waiter::wake_slowly(const std::atomic<std::uint32_t>& counter, std::uint32_t peer) const {
  if (is_remote(peer)) {
    carrier_->ring(peer);
  } else {
    futex_wake(counter);
  }
}

void Waiter::look(std::uint32_t peer, const char* what) {
  look_at_trouble();
  if (stopped_.load(std::memory_order_relaxed)) {
    throw Failure(FailureKind::misuse,
                  "the communicator was closed while " + call_of(rank_) + " was under way");
  }
  if (interrupt_) interrupt_();
  if (started_ns_ == 0) started_ns_ = now_ns();
  const double waited = static_cast<double>(now_ns() - started_ns_) * 1e-9;
  const bool is_late = waited >= timeout_;
  if (!is_late && !is_time_to_speak(waited, next_speech_)) return;
  const std::string text = call_of(rank_) + ": rank " + std::to_string(rank_) + " has waited " +
                           seconds_text(waited) + " s for a " + what + " " + name_of(peer);
  if (is_late) fail(FailureKind::timeout, with_sightings(text, sightings(peer + 1)));
  speak(waited, next_speech_, text, sightings(peer + 1));
}

bool Waiter::has_ended(std::uint32_t peer) const {
  // A life that is shown here may run ahead of the messages to this rank.
  if (is_remote(peer)) return carrier_->has_left(peer);
  const auto life = region_.standing(peer).life.load(std::memory_order_acquire);
  return life == static_cast<std::uint32_t>(Life::moved) || has_gone(peer);
}

bool Waiter::has_gone(std::uint32_t peer) const {
  if (is_remote(peer)) return carrier_->has_left(peer);
  // Acquire: what it had posted before counts.
  const auto life = region_.standing(peer).life.load(std::memory_order_acquire);
  return life == static_cast<std::uint32_t>(Life::closed) || has_ended_process(peer);
}

bool Waiter::has_ended_process(std::uint32_t peer) const {
  if (peer >= pidfds_.size() || pidfds_[peer].get() < 0) return false;
  pollfd entry{pidfds_[peer].get(), POLLIN, 0};  // readable once the process has ended
  return ::poll(&entry, 1, 0) == 1;
}

bool Waiter::report(FailureKind kind, const std::string& text) const {
  if (!region_.trouble().publish(static_cast<std::uint32_t>(kind), rank_, text)) return false;
  carry();  // the other hosts hear of it, too
  return true;
}

void Waiter::fail(FailureKind kind, const std::string& text) const {
  if (!report(kind, text)) {
    // Another rank was faster; all raise the same, once it has written that down.
    const auto began = now_ns();
    do {
      look_at_trouble();
      sched_yield();
    } while (now_ns() - began < kTellingNs);
  }
  tell_of_trouble();
  throw Failure(kind, text);
}

}  // namespace transports
