// What a carrier writes into frames, and does with those that come.
#include <algorithm>
#include <cstring>

#include "carrier.hpp"
#include "lane.hpp"
#include "waiting.hpp"

namespace transports {
namespace {

// Releases wait so long for a frame that goes to the peer anyway.
constexpr std::int64_t kUntoldNs = 30'000;
// How often ranks of other hosts are told how this one stands, if that has changed.
constexpr std::int64_t kNewsNs = 20'000'000;

// A descriptor's words, by their names.
struct MessageWords {
  std::uint32_t sequence, length, fingerprint[2], slot, number, payload[10];
};
struct PacketWords {
  std::uint32_t sequence, kind, message, tag, bytes[2], words[10];

  std::uint64_t whole() const { return bytes[0] | std::uint64_t{bytes[1]} << 32; }
};
static_assert(sizeof(MessageWords) == sizeof(Descriptor));
static_assert(sizeof(PacketWords) == sizeof(LaneDescriptor));

template <class Words>
Words named(const std::uint32_t* words) {
  Words found;
  std::memcpy(&found, words, sizeof found);
  return found;
}

// Of a packet, those that lie in its slot.
std::uint64_t bytes_in_slot(const PacketWords& packet, std::uint64_t slot_bytes) {
  const bool has = packet.kind == static_cast<std::uint32_t>(PacketKind::whole) ||
                   packet.kind == static_cast<std::uint32_t>(PacketKind::fragment);
  if (!has || packet.whole() <= Packet::kSmall) return 0;
  return std::min(packet.whole(), slot_bytes);
}

}  // namespace

// --- out

Frame Carrier::frame_for(std::uint32_t to, FrameKind kind) {
  Peer& peer = peers_[to];
  Frame frame{};
  frame.kind = kind;
  frame.from = rank_;
  peer.messages.told = region_.acks(rank_, to).count().value_or(peer.messages.told);
  peer.packets.told = region_.lane_acks(rank_, to).count().value_or(peer.packets.told);
  peer.untold_since = 0;
  frame.released = peer.messages.told;
  frame.lane_released = peer.packets.told;
  return frame;
}

void Carrier::send(std::uint32_t to, const Frame& frame, const std::byte* payload) {
  if (is_broken_) return;
  const std::size_t bytes = sizeof frame + (frame.is_apart ? 0 : frame.bytes);
  Sending sending{{}, std::make_unique_for_overwrite<std::byte[]>(bytes)};
  std::memcpy(sending.bytes.get(), &frame, sizeof frame);
  if (bytes > sizeof frame) {
    std::memcpy(sending.bytes.get() + sizeof frame, payload, bytes - sizeof frame);
  }
  check(mpi_.isend(sending.bytes.get(), static_cast<int>(bytes), mpi_.byte, places_[to], tag_,
                   mpi_.communicator, &sending.request),
        "MPI_Isend");
  if (is_broken_) return;
  if (!is_over(sending.request)) sendings_.push_back(std::move(sending));
}

void Carrier::push_payload(std::uint32_t to, Frame& frame, Channel& channel,
                           const std::byte* payload, std::uint64_t bytes) {
  frame.bytes = static_cast<std::uint32_t>(bytes);
  frame.is_apart = bytes > kFramePayload;
  send(to, frame, payload);
  const std::uint32_t index = channel.sent++;
  sent_payload_.fetch_add(bytes, std::memory_order_relaxed);
  if (!frame.is_apart || is_broken_) return;
  Parting& parting = channel.partings.emplace_back(Parting{{}, index});
  ++partings_;
  check(mpi_.isend(payload, static_cast<int>(bytes), mpi_.byte, places_[to], tag_ + 1,
                   mpi_.communicator, &parting.request),
        "MPI_Isend");
}

bool Carrier::push(std::uint32_t to) {
  bool moved = false;
  if (is_broken_ || has_said_it_leaves_) return moved;
  while (!is_broken_ && (push_message(to) || push_packet(to))) moved = true;
  return moved;
}

bool Carrier::push_message(std::uint32_t to) {
  Peer& peer = peers_[to];
  auto& channel = peer.messages;
  const auto& descriptor = region_.descriptor(rank_, to, channel.sent);
  // Acquire: descriptor and payload are complete.
  if (descriptor.sequence.load(std::memory_order_acquire) != channel.sent + 1) return false;
  const auto changes = region_.standing(rank_).call_changes.load(std::memory_order_relaxed);
  if (changes != peer.call_told) push_standing(to, FrameKind::standing);
  Frame frame = frame_for(to, FrameKind::message);
  load_words(&descriptor, frame.words);
  const auto words = named<MessageWords>(frame.words);
  const bool has_slot = words.slot != kInlineSlot && words.slot != kLentSlot;
  Place& place = place_of(to, channel.sent);
  const std::byte* payload = place.begin.exchange(nullptr, std::memory_order_relaxed);
  if (place.index.load(std::memory_order_relaxed) != channel.sent) payload = nullptr;
  std::uint64_t bytes = has_slot ? words.length : 0;
  if (payload != nullptr) {
    bytes = place.bytes.load(std::memory_order_relaxed);
  } else if (has_slot) {
    const auto slot = SlotPlace::unpacked(words.slot);
    if (!is_within(slot, bytes)) {
      break_off("its own message was damaged");
      return false;
    }
    payload = region_.slot(rank_, slot);
  }
  push_payload(to, frame, channel, payload, bytes);
  show_gone(to);
  return true;
}

// In order, as the engine counts: those behind one that MPI still has are not gone either.
void Carrier::show_gone(std::uint32_t to) {
  Peer& peer = peers_[to];
  const auto& messages = peer.messages;
  const std::uint32_t gone =
      messages.partings.empty() ? messages.sent : messages.partings.front().index;
  if (gone == peer.gone.load(std::memory_order_relaxed) || is_broken_) return;
  // Release: MPI has read what lies where it was sent from.
  peer.gone.store(gone, std::memory_order_release);
  wake_self(peer.gone);
}

bool Carrier::push_packet(std::uint32_t to) {
  Peer& peer = peers_[to];
  auto& channel = peer.packets;
  const auto& descriptor = region_.lane_descriptor(rank_, to, peer.lane_place);
  // Acquire: descriptor and payload are complete.
  if (descriptor.sequence.load(std::memory_order_acquire) != channel.sent + 1) return false;
  Frame frame = frame_for(to, FrameKind::packet);
  load_words(&descriptor, frame.words);
  push_payload(to, frame, channel, region_.lane_slot(rank_, to, peer.lane_place),
               bytes_in_slot(named<PacketWords>(frame.words), region_.geometry().lane_bytes));
  peer.lane_place = (peer.lane_place + 1) % region_.geometry().lane_slots;
  return true;
}

bool Carrier::push_releases(std::uint32_t to, std::int64_t now) {
  Peer& peer = peers_[to];
  if (has_said_it_leaves_ || peer.has_left.load(std::memory_order_relaxed)) return false;
  const auto& geometry = region_.geometry();
  const auto messages =
      region_.acks(rank_, to).count().value_or(peer.messages.told) - peer.messages.told;
  const auto packets =
      region_.lane_acks(rank_, to).count().value_or(peer.packets.told) - peer.packets.told;
  if (messages == 0 && packets == 0) return false;
  if (peer.untold_since == 0) peer.untold_since = now;
  // Never so long that the peer has no room left.
  const bool is_due = 2 * messages >= geometry.in_flight() || 2 * packets >= geometry.lane_slots ||
                      now - peer.untold_since >= kUntoldNs;
  if (is_due) {
    send(to, frame_for(to, FrameKind::releases), nullptr);
  } else {
    untold_ = true;
  }
  return is_due;
}

void Carrier::push_standing(std::uint32_t to, FrameKind kind) {
  Frame frame = frame_for(to, kind);
  const auto image = StandingImage::of(region_.standing(rank_));
  peers_[to].call_told = image.call_changes;
  frame.bytes = sizeof image;
  send(to, frame, reinterpret_cast<const std::byte*>(&image));
}

void Carrier::push_news(std::int64_t now) {
  news_due_ = now + kNewsNs;
  if (has_said_it_leaves_) return;
  const auto image = StandingImage::of(region_.standing(rank_));
  if (std::memcmp(&image, &told_, sizeof image) == 0) return;
  told_ = image;
  for (const auto peer : remote_) {
    if (peers_[peer].is_leader) push_standing(peer, FrameKind::standing);
  }
}

void Carrier::push_trouble() {
  auto& board = region_.trouble();
  if (has_told_trouble_ || has_said_it_leaves_ ||
      board.state.load(std::memory_order_acquire) != TroubleBoard::published) {
    return;
  }
  // The reporter's own carrier tells all. So does each that leaves: what has made it leave must not
  // come after that it has.
  const bool is_ours = board.reporter.load(std::memory_order_relaxed) == rank_;
  if (!is_ours && (has_heard_trouble_ || !is_closing_.load(std::memory_order_relaxed))) return;
  has_told_trouble_ = true;
  char text[sizeof board.text];
  const std::size_t length = board.text.get(text);
  for (const auto peer : remote_) {
    Frame frame = frame_for(peer, FrameKind::trouble);
    frame.detail = board.kind.load(std::memory_order_relaxed);
    frame.bytes = static_cast<std::uint32_t>(length);
    send(peer, frame, reinterpret_cast<const std::byte*>(text));
  }
}

// --- in

bool Carrier::receive() {
  bool moved = false;
  for (std::size_t n = 0; n < rooms_.size() && !is_broken_; ++n) {
    Room& room = rooms_[room_];
    if (!is_over(room.request)) break;
    Frame frame;
    std::memcpy(&frame, room.bytes.get(), sizeof frame);
    act(frame, room.bytes.get() + sizeof frame);
    check(mpi_.start(&room.request), "MPI_Start");
    room_ = (room_ + 1) % rooms_.size();
    moved = true;
  }
  return moved;
}

// Everything in a frame may be wrong: it is checked here, before it is used.
void Carrier::act(const Frame& frame, const std::byte* payload) {
  const std::uint32_t from = frame.from;
  if (from >= peers_.size() || !peers_[from].is_remote ||
      (frame.is_apart == 0 && frame.bytes > kFramePayload)) {
    return break_off("a frame that no rank sends");
  }
  hear_releases(from, frame);
  switch (frame.kind) {
    case FrameKind::message:
    case FrameKind::packet:
      return arrive(frame, payload, frame.kind == FrameKind::packet);
    case FrameKind::releases:
      return;
    case FrameKind::standing:
    case FrameKind::leave:
      if (frame.bytes != sizeof(StandingImage)) break;
      StandingImage image;
      std::memcpy(&image, payload, sizeof image);
      image.show(region_.standing(from));
      if (frame.kind == FrameKind::leave) {
        peers_[from].completed.store(image.completed, std::memory_order_relaxed);
        peers_[from].says_it_has_left = true;
      }
      return;
    case FrameKind::trouble:
      region_.trouble().publish(frame.detail, from,
                                {reinterpret_cast<const char*>(payload), frame.bytes});
      has_heard_trouble_ = true;
      return;
  }
  break_off("a rank sent a damaged frame");
}

std::byte* Carrier::room_for(const Frame& frame, bool is_packet) {
  if (frame.bytes == 0) return nullptr;
  const auto& geometry = region_.geometry();
  if (is_packet) {
    if (frame.bytes > geometry.lane_bytes) return nullptr;
    return region_.lane_slot(frame.from, rank_, peers_[frame.from].lane_arrived_place);
  }
  const auto words = named<MessageWords>(frame.words);
  const auto place = SlotPlace::unpacked(words.slot);
  if (words.slot == kInlineSlot || words.length != frame.bytes || !is_within(place, frame.bytes)) {
    return nullptr;
  }
  return region_.slot(frame.from, place);
}

void Carrier::arrive(const Frame& frame, const std::byte* payload, bool is_packet) {
  const std::uint32_t from = frame.from;
  Peer& peer = peers_[from];
  std::byte* const room = room_for(frame, is_packet);
  if (room == nullptr && frame.bytes != 0) {
    return break_off("a rank sent a damaged message");
  }
  const std::uint32_t index = is_packet ? peer.lane_arrived_place : peer.messages.arrived;
  if (is_packet) {
    ++peer.packets.arrived;
    peer.lane_arrived_place = (index + 1) % region_.geometry().lane_slots;
  } else {
    ++peer.messages.arrived;
    // It is in this call by now; where its text has changed, that has come before.
    auto& standing = region_.standing(from);
    const auto number = named<MessageWords>(frame.words).number;
    auto shown = standing.entered.load(std::memory_order_relaxed);
    while (!reached(static_cast<std::uint32_t>(shown), number)) {
      const auto entered =
          shown + static_cast<std::uint32_t>(number - static_cast<std::uint32_t>(shown));
      // Of what it has not shown nothing is known, of calls that it was in meanwhile neither.
      for (auto skipped = shown + 1; skipped != entered + 1; ++skipped) {
        standing.stamp_of(skipped).store(0, std::memory_order_relaxed);
        if (skipped - shown == kStamps) break;
      }
      if (standing.entered.compare_exchange_weak(shown, entered, std::memory_order_release,
                                                 std::memory_order_relaxed)) {
        break;
      }
    }
  }
  std::uint32_t words[kFrameWords];
  std::memcpy(words, frame.words, sizeof words);
  words[0] = is_packet ? peer.packets.arrived : peer.messages.arrived;  // the sequence
  if (frame.is_apart == 0) {
    if (frame.bytes != 0) std::memcpy(room, payload, frame.bytes);
    return publish(from, is_packet, index, words);
  }
  Arrival& arrival = arrivals_.emplace_back(Arrival{{}, from, is_packet, index, {}});
  std::memcpy(arrival.words, words, sizeof words);
  ++peer.arrivals;
  check(mpi_.irecv(room, static_cast<int>(frame.bytes), mpi_.byte, places_[from], tag_ + 1,
                   mpi_.communicator, &arrival.request),
        "MPI_Irecv");
}

void Carrier::publish(std::uint32_t from, bool is_packet, std::uint32_t index,
                      const std::uint32_t* words) {
  std::uint32_t copied[kFrameWords];
  std::memcpy(copied, words, sizeof copied);
  const auto show = [&](auto& descriptor) {
    store_words(copied, &descriptor);
    // Release: descriptor and payload are complete for whoever sees the new sequence.
    descriptor.sequence.store(copied[0], std::memory_order_release);
    wake_self(descriptor.sequence);
  };
  if (is_packet) {
    show(region_.lane_descriptor(from, rank_, index));
  } else {
    show(region_.descriptor(from, rank_, index));
  }
}

void Carrier::hear_releases(std::uint32_t from, const Frame& frame) {
  Peer& peer = peers_[from];
  peer.messages.heard = frame.released;
  peer.packets.heard = frame.lane_released;
  show_releases(from, false);
  show_releases(from, true);
}

void Carrier::show_releases(std::uint32_t from, bool is_packet) {
  const auto& channel = is_packet ? peers_[from].packets : peers_[from].messages;
  auto& acks = is_packet ? region_.lane_acks(from, rank_) : region_.acks(from, rank_);
  std::uint32_t count = channel.heard;
  // MPI may still look at what the peer has got already.
  if (!channel.partings.empty() && reached(count, channel.partings.front().index + 1)) {
    count = channel.partings.front().index;
  }
  const std::uint32_t shown = acks.released.load(std::memory_order_relaxed);
  if (count == shown || !reached(count, shown)) return;
  // One by one: who reads it between its count and its check knows that of the next one only.
  for (std::uint32_t each = shown; each != count;) acks.release(++each);
  wake_self(acks.released);
}

}  // namespace transports
