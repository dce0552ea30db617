// The layout of the memory that the ranks of one communicator on one host share.
//
//   Header | part of rank 0 | part of rank 1 | ...
//
// A part is written by its own rank alone (the trouble board in the header, first come first
// served, is the one exception), and holds what that rank says to the others:
//
//   Standing            alive or not, who, and which call it is in
//   AckLine[ranks]      for each peer: how many of its messages this rank has released
//   Descriptor[ranks][depth]   for each peer: a ring of messages to it
//   slots               payloads too long for a descriptor, written once and read in place
//   lanes               the same for point-to-point, see lane.hpp and point_to_point.hpp
//
// Sequence numbers and acknowledgements are 32-bit counters that wrap; they are compared by their
// signed difference. Nothing here owns anything.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace transports {

inline constexpr std::size_t kLine = 64;  // one cache line
inline constexpr std::size_t kPage = 4096;
inline constexpr std::size_t kInlineBytes = 40;
inline constexpr std::uint32_t kInlineSlot = 0xffffffffu;
inline constexpr std::uint32_t kLentSlot = 0xfffffffeu;
inline constexpr std::uint32_t kLayoutVersion = 11;

inline constexpr std::size_t round_up(std::size_t bytes, std::size_t to) {
  return (bytes + to - 1) / to * to;
}

// Counters that wrap pick their place by the remainder, so a ring's length must divide 2^32.
inline constexpr bool is_ring_length(std::uint32_t length) {
  return length >= 2 && (length & (length - 1)) == 0;
}

// Whether a wrapping counter has come to `wanted`.
inline bool reached(std::uint32_t counter, std::uint32_t wanted) {
  return static_cast<std::int32_t>(counter - wanted) >= 0;
}

// One message from one rank to one peer. `sequence` is written last (release) and read first
// (acquire): the other fields and the payload are ordered by it.
struct alignas(kLine) Descriptor {
  std::atomic<std::uint32_t> sequence;
  std::uint32_t length;  // bytes
  std::uint64_t fingerprint;
  std::uint32_t slot;    // a SlotPlace; kInlineSlot: the payload is right here; kLentSlot: here is
                         // its address in the sender's memory, see lending.hpp
  std::uint32_t number;  // of the sender's call, for messages
  std::byte payload[kInlineBytes];
};
static_assert(sizeof(Descriptor) == kLine);

// Which slot a payload lies in, and how far from its begin: as far as the sender's array is from a
// cache line, so that vectors of both are aligned at once.
struct SlotPlace {
  std::uint32_t index;
  std::uint32_t shift;  // below kLine
  bool is_past_caches;  // whether it was stored there

  std::uint32_t packed() const { return index | shift << 24 | std::uint32_t{is_past_caches} << 31; }
  static SlotPlace unpacked(std::uint32_t word) {
    return {word & 0xffffff, word >> 24 & 0x7f, (word >> 31) != 0};
  }
};

// One packet of point-to-point, see lane.hpp; `sequence` as above. Every field is read once.
struct alignas(kLine) LaneDescriptor {
  std::atomic<std::uint32_t> sequence;
  std::atomic<std::uint32_t> kind;
  std::atomic<std::uint32_t> message;
  std::atomic<std::uint32_t> tag;
  std::atomic<std::uint64_t> bytes;
  std::atomic<std::uint64_t> words[5];
};
static_assert(sizeof(LaneDescriptor) == kLine);

// On a line of its own, so that acknowledging to one peer does not disturb another.
struct alignas(kLine) AckLine {
  std::atomic<std::uint32_t> released;
  // Nanoseconds in which the reader gets a line that the sender has in its cache; 0: not known.
  std::atomic<std::uint32_t> distance;
  // Whether the reader may have the kernel copy from the sender's memory.
  std::atomic<std::uint32_t> may_pull;
  std::atomic<std::uint32_t> check;  // of `released`: what something else has written has none

  static std::uint32_t check_of(std::uint32_t count) { return count * 0x9e3779b1u; }
  // So many messages of the sender's have been read.
  void release(std::uint32_t count) {
    check.store(check_of(count), std::memory_order_relaxed);  // ordered by the next
    // Release: our reads of the payload are done before the sender may write there again.
    released.store(count, std::memory_order_release);
  }
  // How many; nothing, if that is not what the reader has left, or it is just leaving one more.
  std::optional<std::uint32_t> count() const {
    // Acquire: what was read there has been read, and the check is of this count or of a later one.
    const std::uint32_t found = released.load(std::memory_order_acquire);
    const std::uint32_t its = check.load(std::memory_order_relaxed);
    if (its != check_of(found) && its != check_of(found + 1)) return std::nullopt;
    return found;
  }
};

// Text that one rank writes and others may read at any time: words, so that a torn read is old and
// new text mixed, and never a data race.
template <std::size_t Words>
struct SharedText {
  std::atomic<std::uint64_t> words[Words];

  void set(std::string_view text);
  std::size_t get(char* out) const;  // Words * 8 bytes of room; returns the length
};

// `moved`: closed, and the rank goes on in a smaller communicator of those that were left.
enum class Life : std::uint32_t { absent = 0, running, closed, moved };

// Where an array of a one-sided call lies: symmetric memory, the same on every rank.
struct Whereabouts {
  std::atomic<std::uint64_t> block;  // its id; 0: not in symmetric memory, or of no concern
  std::atomic<std::uint64_t> offset;
};

// Whom a long wait of a rank is for, in a collective or in point-to-point. Written when the wait
// has turned slow, so it costs nothing where nothing is wrong.
struct alignas(kLine) Waits {
  static constexpr std::uint32_t kNobody = 0, kAnybody = 0xffffffffu;  // else a rank, plus one

  std::atomic<std::uint32_t> whom;
  std::atomic<std::uint32_t> count;     // of changes: if it stands still, so does the wait
  std::atomic<std::uint32_t> looks;     // ... in which it was looked again whether it is over
  std::atomic<std::uint32_t> is_alone;  // nothing else in the program could act
  SharedText<12> what;                  // of point-to-point
};

// What a rank has found of a call: nanoseconds, by way of slots and by copies of the kernel's.
struct Trial {
  std::atomic<std::uint64_t> call;  // its fingerprint
  std::atomic<std::uint64_t> least[2];
};
inline constexpr std::size_t kTrialPlaces = 64, kTrialWays = 4;

inline constexpr std::size_t kStamps = 4;

struct alignas(kLine) Standing {
  std::atomic<std::uint32_t> life;
  std::atomic<std::uint32_t> pid;
  std::atomic<std::uint32_t>
      expedited;  // 1: it fences for others when it sleeps, see expedited.hpp
  alignas(kLine) std::atomic<std::uint32_t> sleepers;  // threads of this rank in a futex wait
  alignas(kLine) std::atomic<std::uint64_t> entered;   // number of the call it last entered
  std::atomic<std::uint64_t> completed;                // ... and last completed
  std::atomic<std::uint64_t> stamps[kStamps];  // of entered calls, see stamp_of; 0: not known
  std::atomic<std::uint32_t> is_background;    // whether a thread other than the caller's runs it
  SharedText<24> call;                         // what the entered call is
  std::atomic<std::uint32_t> call_changes;     // of that text
  std::atomic<std::uint32_t> is_written;     // of a rank of another host: by one of those it tells
  Whereabouts input, output;                 // of a one-sided call
  Waits in_call, in_message;                 // what long waits of it are for
  std::atomic<std::uint32_t> in_queue;       // its program waits for an asynchronous call
  std::atomic<std::uint32_t> queue_changes;  // of in_queue; as the count of Waits
  std::atomic<std::uint32_t> queue_looks;    // ... and as their looks
  std::atomic<std::uint32_t> queued;         // asynchronous calls of it that have not ended
  std::atomic<std::uint32_t> is_moving;      // messages to or from it move without its program
  std::atomic<std::uint32_t> is_untaken;  // some of it lie in lanes; shown while it waits for one
  // Of its calls, by number: the one whose arrays others may have copied to and from; 0: none.
  std::atomic<std::uint64_t> open_for;
  std::atomic<std::uint32_t> writes_to;  // whose array it is having copied to: a rank, plus one
  // See lending.hpp: of calls that lend, then of those that reach.
  Trial trials[2 * kTrialPlaces];

  // It is written before `entered` comes to the number. So where that stands at n, the stamps of n
  // and of the two calls before it are their own; what stands in the fourth place may be n + 1's.
  std::atomic<std::uint64_t>& stamp_of(std::uint64_t number) { return stamps[number % kStamps]; }
  const std::atomic<std::uint64_t>& stamp_of(std::uint64_t number) const {
    return stamps[number % kStamps];
  }
};

// Where the first trouble is written, for every rank to raise.
struct alignas(kLine) TroubleBoard {
  enum State : std::uint32_t { none = 0, writing, published };
  std::atomic<std::uint32_t> state;
  std::atomic<std::uint32_t> kind;
  std::atomic<std::uint32_t> reporter;
  SharedText<1024> text;

  // Writes it down for every rank to raise, unless something stands there already: then false.
  bool publish(std::uint32_t kind, std::uint32_t reporter, std::string_view text);
};

// A length must fit in 32 bits, a slot's index in a SlotPlace.
inline constexpr std::uint64_t kMostSlotBytes = 0x40000000u;
inline constexpr std::uint32_t kMostSlots = 0x800000u;

struct Geometry {
  std::uint32_t ranks;
  std::uint32_t depth;  // descriptors a pair
  std::uint32_t slots;  // slots a rank
  std::uint64_t slot_bytes;
  std::uint32_t lane_slots;  // point-to-point: slots a pair
  std::uint64_t lane_bytes;  // ... and their size

  // How many messages a rank may have on their way at once.
  std::uint32_t in_flight() const { return slots < depth ? slots : depth; }

  std::size_t acks_at() const { return round_up(sizeof(Standing), kLine); }
  std::size_t descriptors_at() const { return acks_at() + ranks * sizeof(AckLine); }
  std::size_t lane_acks_at() const {
    return descriptors_at() + std::size_t{ranks} * depth * sizeof(Descriptor);
  }
  std::size_t lane_descriptors_at() const { return lane_acks_at() + ranks * sizeof(AckLine); }
  std::size_t slots_at() const {
    return round_up(
        lane_descriptors_at() + std::size_t{ranks} * lane_slots * sizeof(LaneDescriptor), kPage);
  }
  std::size_t slot_stride() const { return slot_bytes + kLine; }  // room for a shift
  std::size_t lanes_at() const { return round_up(slots_at() + slots * slot_stride(), kPage); }
  std::size_t part_bytes() const {
    return round_up(lanes_at() + std::size_t{ranks} * lane_slots * lane_bytes, kPage);
  }
  std::size_t header_bytes() const;
  std::size_t total_bytes() const { return header_bytes() + ranks * part_bytes(); }

  // What no engine can use, in words; nothing if all is well.
  const char* fault() const;
  // Whether a region like this fits in so many bytes. Never overflows, whatever the numbers are:
  // they may come from a header that anybody wrote. Of one without a fault.
  bool fits(std::size_t bytes) const;
};

struct alignas(kPage) Header {
  char magic[8];
  std::uint32_t version;
  Geometry geometry;
  TroubleBoard trouble;
  // When a rank last said that it waits, on the clock all ranks share; one of them does at a time.
  std::atomic<std::int64_t> spoken_ns;
};

inline std::size_t Geometry::header_bytes() const {
  return sizeof(Header);
}

// A view of a mapped region: finds things in it. The mapping must outlive it.
class Region {
 public:
  Region(std::byte* base, const Geometry& geometry)
      : base_(base),
        geometry_(geometry),
        part_bytes_(geometry.part_bytes()),
        acks_at_(geometry.acks_at()),
        descriptors_at_(geometry.descriptors_at()),
        slots_at_(geometry.slots_at()) {}

  // Writes the header of fresh, zeroed memory of at least geometry.total_bytes().
  static void format(std::byte* base, const Geometry& geometry);
  // Checks the header of memory that another rank formatted; throws std::runtime_error.
  static Region attach(std::byte* base, std::size_t bytes);

  const Geometry& geometry() const { return geometry_; }
  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  TroubleBoard& trouble() const { return header().trouble; }
  Standing& standing(std::uint32_t rank) const { return at<Standing>(rank, 0); }
  // Messages of `sender` that `rank` has released.
  AckLine& acks(std::uint32_t rank, std::uint32_t sender) const {
    return at<AckLine>(rank, acks_at_ + sender * sizeof(AckLine));
  }
  Descriptor& descriptor(std::uint32_t sender, std::uint32_t receiver, std::uint32_t index) const {
    // A ring's length is a power of two.
    const std::size_t place =
        std::size_t{receiver} * geometry_.depth + (index & (geometry_.depth - 1));
    return at<Descriptor>(sender, descriptors_at_ + place * sizeof(Descriptor));
  }
  std::byte* slot(std::uint32_t rank, SlotPlace place) const {
    return part(rank) + slots_at_ + place.index * geometry_.slot_stride() + place.shift;
  }
  AckLine& lane_acks(std::uint32_t rank, std::uint32_t sender) const {
    return at<AckLine>(rank, geometry_.lane_acks_at() + sender * sizeof(AckLine));
  }
  LaneDescriptor& lane_descriptor(std::uint32_t sender, std::uint32_t receiver,
                                  std::uint32_t index) const {
    const std::size_t place =
        std::size_t{receiver} * geometry_.lane_slots + index % geometry_.lane_slots;
    return at<LaneDescriptor>(sender,
                              geometry_.lane_descriptors_at() + place * sizeof(LaneDescriptor));
  }
  std::byte* lane_slot(std::uint32_t sender, std::uint32_t receiver, std::uint32_t index) const {
    const std::size_t place =
        std::size_t{receiver} * geometry_.lane_slots + index % geometry_.lane_slots;
    return part(sender) + geometry_.lanes_at() + place * geometry_.lane_bytes;
  }

 private:
  std::byte* part(std::uint32_t rank) const { return base_ + sizeof(Header) + rank * part_bytes_; }
  template <class T>
  T& at(std::uint32_t rank, std::size_t offset) const {
    return *reinterpret_cast<T*>(part(rank) + offset);
  }

  std::byte* base_;
  Geometry geometry_;
  // Of the geometry; reckoned once, since every message asks for them.
  std::size_t part_bytes_, acks_at_, descriptors_at_, slots_at_;
};

}  // namespace transports
