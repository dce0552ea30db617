// A lane: packets of point-to-point from one rank to one peer, in order, each with room for a
// payload.
//
// Lanes never wait: a sender asks whether there is room, a receiver whether there is a packet.
// What a packet says was written by another process, and is checked by whoever acts on it; a lane
// itself only sees to it that nothing outside its memory is touched.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>

#include "operation.hpp"
#include "region.hpp"
#include "waiting.hpp"

namespace transports {

enum class PacketKind : std::uint32_t {
  whole = 1,     // a message with its bytes
  announcement,  // of a message longer than a slot
  clear,         // the answer: a receive has been found for it, send the bytes
  fragment,      // a slot full of its bytes, or the rest of them
};

struct Packet {
  PacketKind kind{};
  std::uint32_t message = 0;  // numbers the long messages of a lane
  std::int32_t tag = 0;
  std::uint64_t bytes = 0;  // of the whole message
  What what{};
  std::array<std::uint64_t, 2> small{};  // the payload, if it is no longer than this

  static constexpr std::size_t kSmall = sizeof(small);
};

class OutgoingLane {
 public:
  OutgoingLane(const Region& region, const Waiter& waiter, std::uint32_t peer)
      : region_(region), waiter_(waiter), peer_(peer) {}

  bool has_room() {
    const std::uint32_t slots = region_.geometry().lane_slots;
    if (sent_ - known_released_ < slots) return true;  // spares a cache miss a packet
    look_at_acks();
    return sent_ - known_released_ < slots;
  }
  // There is room: post a packet, with `length` bytes, at most a slot, that lie at `payload`.
  void post(const Packet& packet, const std::byte* payload, std::size_t length) {
    auto& descriptor = region_.lane_descriptor(waiter_.rank(), peer_, place_);
    std::array<std::uint64_t, 2> small{};
    if (length > Packet::kSmall) {
      std::memcpy(region_.lane_slot(waiter_.rank(), peer_, place_), payload, length);
    } else if (length != 0) {
      std::memcpy(small.data(), payload, length);
    }
    // Relaxed: the sequence orders them all.
    constexpr auto relaxed = std::memory_order_relaxed;
    descriptor.kind.store(static_cast<std::uint32_t>(packet.kind), relaxed);
    descriptor.message.store(packet.message, relaxed);
    descriptor.tag.store(static_cast<std::uint32_t>(packet.tag), relaxed);
    descriptor.bytes.store(packet.bytes, relaxed);
    for (std::size_t i = 0; i < 3; ++i) descriptor.words[i].store(packet.what.words[i], relaxed);
    for (std::size_t i = 0; i < 2; ++i) descriptor.words[3 + i].store(small[i], relaxed);
    // Release: descriptor and payload are complete for whoever sees the new sequence.
    descriptor.sequence.store(++sent_, std::memory_order_release);
    waiter_.fence_before_wake();
    waiter_.wake(descriptor.sequence, peer_);
    place_ = (place_ + 1) % region_.geometry().lane_slots;
  }

  // Whether the peer has taken all that was posted.
  bool is_taken() {
    look_at_acks();
    return sent_ == known_released_;
  }
  // Whether there was none when last asked.
  bool was_full() const { return sent_ - known_released_ >= region_.geometry().lane_slots; }
  // What to sleep on while there is no room: until the counter has come to the value.
  const std::atomic<std::uint32_t>& released() const {
    return region_.lane_acks(peer_, waiter_.rank()).released;
  }
  std::uint32_t awaited() const { return sent_ - region_.geometry().lane_slots + 1; }

 private:
  void look_at_acks() {
    // What is no count of the peer's is none: it leaves another.
    const auto found = region_.lane_acks(peer_, waiter_.rank()).count();
    if (found) known_released_ = *found;
  }

  Region region_;
  const Waiter& waiter_;
  std::uint32_t peer_;
  std::uint32_t sent_ = 0;
  std::uint32_t known_released_ = 0;
  std::uint32_t place_ = 0;  // sent_ modulo the slots, also when sent_ wraps
};

class IncomingLane {
 public:
  IncomingLane(const Region& region, const Waiter& waiter, std::uint32_t peer)
      : region_(region), waiter_(waiter), peer_(peer) {}

  // Reads the next packet, if there is one; its payload stays in place until release().
  bool take(Packet& packet) const {
    const auto& descriptor = region_.lane_descriptor(peer_, waiter_.rank(), place_);
    // Acquire: the peer wrote the rest before the sequence.
    if (descriptor.sequence.load(std::memory_order_acquire) != taken_ + 1) return false;
    constexpr auto relaxed = std::memory_order_relaxed;
    packet.kind = static_cast<PacketKind>(descriptor.kind.load(relaxed));
    packet.message = descriptor.message.load(relaxed);
    packet.tag = static_cast<std::int32_t>(descriptor.tag.load(relaxed));
    packet.bytes = descriptor.bytes.load(relaxed);
    for (std::size_t i = 0; i < 3; ++i) packet.what.words[i] = descriptor.words[i].load(relaxed);
    for (std::size_t i = 0; i < 2; ++i) packet.small[i] = descriptor.words[3 + i].load(relaxed);
    return true;
  }
  // Copies the first `length` bytes, at most a slot, of the payload of `packet`, taken last.
  void copy(const Packet& packet, std::size_t length, std::byte* to) const {
    if (length > Packet::kSmall) {
      std::memcpy(to, region_.lane_slot(peer_, waiter_.rank(), place_), length);
    } else if (length != 0) {
      std::memcpy(to, packet.small.data(), length);
    }
  }
  void release() {
    auto& acks = region_.lane_acks(waiter_.rank(), peer_);
    acks.release(++taken_);
    waiter_.fence_before_wake();
    waiter_.wake(acks.released, peer_);
    place_ = (place_ + 1) % region_.geometry().lane_slots;
  }

  // What to sleep on while there is no packet.
  const std::atomic<std::uint32_t>& sequence() const {
    return region_.lane_descriptor(peer_, waiter_.rank(), place_).sequence;
  }
  std::uint32_t awaited() const { return taken_ + 1; }

 private:
  Region region_;
  const Waiter& waiter_;
  std::uint32_t peer_;
  std::uint32_t taken_ = 0;
  std::uint32_t place_ = 0;
};

}  // namespace transports
