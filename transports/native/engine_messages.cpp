// Which slot a message gets, and what does not fit the call.
#include <sched.h>

#include <algorithm>
#include <chrono>

#include "engine.hpp"

namespace transports {
namespace {

// Of the slots in use, what an inner cache holds beside the arrays.
constexpr std::uint64_t kHotBytes = 512 * 1024;

// Long messages between looks at the distance; of those stored past the caches, one of so many is
// not, to be looked at.
constexpr std::uint32_t kLookEvery = 32;
constexpr std::uint32_t kLoads = 8;

// Looks at an acknowledgement that seems to be none.
constexpr int kLooksAtAck = 1000;

// Nanoseconds a load, of loads that wait for each other, on lines that no prefetcher foresees.
std::uint32_t nanoseconds_a_load(const std::byte* payload, std::uint32_t first) {
  static volatile const std::uint32_t kNothing = 0;
  const std::uint32_t nothing = kNothing;  // the compiler does not know that it is 0
  const auto began = std::chrono::steady_clock::now();
  std::uint32_t dependence = 0;
  for (std::uint32_t i = first; i < first + kLoads; ++i) {
    const std::size_t line = (i * i + dependence) % 61;
    dependence = static_cast<std::uint32_t>(payload[(line + 1) * kLine]) & nothing;
  }
  const auto took = std::chrono::steady_clock::now() - began + std::chrono::nanoseconds(dependence);
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
  return static_cast<std::uint32_t>(nanoseconds) / kLoads;
}

}  // namespace

bool Engine::is_any_far(const std::uint32_t* targets, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    // Relaxed: a hint.
    const auto distance = region_.acks(targets[i], rank()).distance.load(std::memory_order_relaxed);
    if (distance > far_ns_) return ++far_messages_ % kLookEvery != 0;
  }
  return false;
}

void Engine::measure_distance(std::uint32_t peer, const std::byte* payload) {
  auto& distance = region_.acks(rank(), peer).distance;
  const bool is_due = peers_[peer].unmeasured++ % kLookEvery == 0;
  // What is taken to be far sends only now and then what can be looked at.
  if (!is_due && distance.load(std::memory_order_relaxed) <= far_ns_) return;
  // The less of two: an interruption is no distance.
  const auto found =
      std::min(nanoseconds_a_load(payload, 1), nanoseconds_a_load(payload, 1 + kLoads));
  distance.store(std::max(found, std::uint32_t{1}), std::memory_order_relaxed);
}

Engine::Slot& Engine::next_slot(std::uint64_t bytes) {
  // As many take turns as stay in the cache together: what has just been read elsewhere is not
  // overwritten at once, and of long messages the peers' lag alone makes more slots be touched.
  const auto count = static_cast<std::uint32_t>(slots_.size());
  const auto turns =
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(kHotBytes / bytes, 1, slots_.size()));
  const std::uint32_t first = slot_ + 1 < turns ? slot_ + 1 : 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    Slot& slot = slots_[(first + i) & (count - 1)];
    if (std::all_of(slot.readers.begin(), slot.readers.end(),
                    [this](const Message& reader) { return is_released(reader); })) {
      return slot;
    }
  }
  return *std::min_element(slots_.begin(), slots_.end(), [](const Slot& one, const Slot& other) {
    return one.filled < other.filled;
  });
}

std::uint32_t Engine::released_by(std::uint32_t peer) {
  const auto& acks = region_.acks(peer, rank());
  auto released = acks.count();
  // A reader that goes on leaves another; there are not many.
  for (int looks = 0; !released && looks < kLooksAtAck; ++looks) {
    sched_yield();
    released = acks.count();
  }
  if (!released || !reached(peers_[peer].sent, *released)) {
    waiter_.fail(FailureKind::mismatch,
                 waiter_.name_of(peer) + " acknowledged messages that it never got");
  }
  return peers_[peer].known_released = *released;
}

bool Engine::is_released(const Message& message) {
  auto& peer = peers_[message.peer];
  // So many messages ago that it had to be released for a later one; its index may have wrapped.
  if (peer.reserved - 1 - message.index >= region_.geometry().depth) return true;
  if (reached(peer.known_released, message.index + 1)) return true;
  return reached(released_by(message.peer), message.index + 1);
}

void Engine::fail_mismatch(std::uint32_t peer, const Descriptor& found, std::uint64_t bytes) {
  const std::uint32_t number = __atomic_load_n(&found.number, __ATOMIC_RELAXED);
  std::string text = "ranks are in different calls: rank " + std::to_string(rank()) + " has " +
                     waiter_.placed_call_of(rank(), number_) + ", rank " + std::to_string(peer) +
                     " has " + waiter_.placed_call_of(peer, number_);
  if (number != static_cast<std::uint32_t>(number_)) {
    text += " (the message is one of its call #" + std::to_string(number) +
            ", so a call before this one differed between them, in its root or its order)";
  } else if (__atomic_load_n(&found.length, __ATOMIC_RELAXED) != bytes) {
    text += " (a message of " + std::to_string(found.length) + " bytes, expected " +
            std::to_string(bytes) + ")";
  }
  text += waiter_.where_arrays_differ(peer);
  waiter_.fail(FailureKind::mismatch, text);
}

void Engine::look_for_untaken(std::uint32_t peer) {
  const std::uint32_t index = peers_[peer].released;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  // Acquire: the number was written before.
  if (descriptor.sequence.load(std::memory_order_acquire) != index + 1) return;
  const std::uint32_t number = __atomic_load_n(&descriptor.number, __ATOMIC_RELAXED);
  if (!reached(static_cast<std::uint32_t>(number_), number)) return;  // of a call yet to come
  waiter_.fail(FailureKind::mismatch,
               "ranks are in different calls: rank " + std::to_string(peer) +
                   " has sent a message in its call #" + std::to_string(number) + " that rank " +
                   std::to_string(rank()) +
                   " did not take in its own, so the two calls differed, in their root or order; "
                   "rank " +
                   std::to_string(rank()) + " has " + waiter_.placed_call_of(rank(), number_) +
                   ", rank " + std::to_string(peer) + " has " + waiter_.call_of(peer));
}

}  // namespace transports
