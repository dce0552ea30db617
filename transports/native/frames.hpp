// What travels between hosts: frames, each of which a carrier writes and a carrier reads.
//
// A frame is a header and, behind it, up to kFramePayload bytes. A longer payload goes by itself,
// from the slot it lies in to the slot of the same number on the other host.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "region.hpp"

namespace transports {

enum class FrameKind : std::uint32_t {
  message = 1,  // of a collective: the words of a Descriptor
  packet,       // of point-to-point: the words of a LaneDescriptor
  releases,     // nothing but what every frame says
  standing,     // a StandingImage follows
  trouble,      // its text follows
  leave,        // the sender has closed; a StandingImage follows
};

inline constexpr std::size_t kFrameWords = sizeof(Descriptor) / sizeof(std::uint32_t);
static_assert(sizeof(LaneDescriptor) == sizeof(Descriptor));

struct Frame {
  FrameKind kind;
  std::uint32_t from;           // rank
  std::uint32_t released;       // of the receiver's messages, by the sender
  std::uint32_t lane_released;  // ... and of its packets
  std::uint32_t bytes;          // of the payload
  std::uint32_t is_apart;       // whether that comes by itself
  std::uint32_t detail;         // of trouble: its kind
  std::uint32_t spare;
  std::uint32_t
      words[kFrameWords];  // the first, a sequence, counts for nothing: frames are in order
};

inline constexpr std::size_t kFramePayload = sizeof(TroubleBoard::text);
inline constexpr std::size_t kFrameBytes = sizeof(Frame) + kFramePayload;

// A descriptor's words, as whoever reads them may find them amid a change.
inline void load_words(const void* from, std::uint32_t (&to)[kFrameWords]) {
  const auto* const words = static_cast<const std::uint32_t*>(from);
  for (std::size_t i = 1; i < kFrameWords; ++i)
    to[i] = __atomic_load_n(words + i, __ATOMIC_RELAXED);
}
// All but the first, which says that the rest is there.
inline void store_words(const std::uint32_t (&from)[kFrameWords], void* to) {
  auto* const words = static_cast<std::uint32_t*>(to);
  for (std::size_t i = 1; i < kFrameWords; ++i) {
    __atomic_store_n(words + i, from[i], __ATOMIC_RELAXED);
  }
}

// What ranks of other hosts are shown of a Standing.
struct StandingImage {
  std::uint64_t entered, completed, stamps[kStamps];
  std::uint64_t call[24];
  std::uint64_t message[12];
  std::uint32_t call_changes, life, is_background, in_queue, queued, is_moving;
  std::uint32_t whom_in_call, whom_in_message;

  static StandingImage of(const Standing& standing);
  // Shows it, unless a later one is shown already, or just being written.
  void show(Standing& standing) const;

 private:
  void write(Standing& standing) const;
};
static_assert(sizeof(StandingImage) <= kFramePayload);

}  // namespace transports
