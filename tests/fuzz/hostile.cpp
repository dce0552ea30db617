#include "hostile.hpp"

#include "lane.hpp"

namespace fuzzing {

using namespace transports;

namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr std::uint64_t kLengths[] = {0, 1, 8, 16, 40, 41, 64, 128, 192, 256, 1000, 4096, 65536};

}  // namespace

void Hostile::take_turn() {
  if (turns_to_skip_ > 0) {
    --turns_to_skip_;
    return;
  }
  strike();
  turns_to_skip_ = bytes_.below(32);
}

void Hostile::strike() {
  const std::uint32_t writes = 1 + bytes_.below(4);
  for (std::uint32_t i = 0; i < writes && !bytes_.is_empty(); ++i) {
    switch (bytes_.below(8)) {
      case 0:
        break;  // the victim goes on as it is
      case 1:
        write_anywhere();
        break;
      case 2:
        write_message();
        break;
      case 3:
        write_ack();
        break;
      case 4:
        write_standing();
        break;
      case 5:
        write_packet();
        break;
      case 6:
        write_lane_ack();
        break;
      default:
        write_trouble();
    }
  }
}

std::uint32_t Hostile::peer() {
  const std::uint32_t ranks = region_.geometry().ranks;
  return (victim_ + 1 + bytes_.below(ranks > 1 ? ranks - 1 : 1)) % ranks;
}

std::uint32_t Hostile::counter(std::uint32_t expected) {
  switch (bytes_.below(4)) {
    case 0:
      return bytes_.next<std::uint32_t>();
    case 1:
      return bytes_.below(16);
    default:
      return expected;
  }
}

std::uint64_t Hostile::likely_fingerprint(std::uint64_t bytes) const {
  // As Engine::fingerprint_of, from the stamp that the victim shows to all.
  const Standing& standing = region_.standing(victim_);
  const auto stamp = standing.stamp_of(standing.entered.load(kRelaxed)).load(kRelaxed);
  return stamp ^ (bytes * 0xff51afd7ed558ccdu);
}

void Hostile::write_anywhere() {
  const std::size_t at = bytes_.next<std::uint32_t>() % size_;
  const std::size_t wanted = 1 + bytes_.below(64);
  bytes_.take(base_ + at, wanted < size_ - at ? wanted : size_ - at);
}

void Hostile::write_message() {
  const std::uint32_t from = peer();
  const std::uint32_t index = counter(messages_[from % 8]);
  Descriptor& descriptor = region_.descriptor(from, victim_, index);
  // What the victim sends it expects, in most calls: so the rest of the message is looked at too.
  const Descriptor& like = region_.descriptor(victim_, from, index);
  const std::uint64_t length = bytes_.below(3) == 0 ? kLengths[bytes_.below(std::size(kLengths))]
                                                    : std::uint64_t{like.length};
  descriptor.length =
      bytes_.below(16) == 0 ? bytes_.next<std::uint32_t>() : static_cast<std::uint32_t>(length);
  switch (bytes_.below(8)) {
    case 0:
      descriptor.fingerprint = bytes_.next<std::uint64_t>();
      break;
    case 1:
      descriptor.fingerprint = likely_fingerprint(kLengths[bytes_.below(std::size(kLengths))]);
      break;
    case 2:
    case 3:
      descriptor.fingerprint = likely_fingerprint(length);
      break;
    default:
      descriptor.fingerprint = like.fingerprint;
  }
  switch (bytes_.below(8)) {
    case 0:
      descriptor.slot = kInlineSlot;
      break;
    case 1:
      descriptor.slot = kLentSlot;  // from the address in its payload
      break;
    case 2:
      descriptor.slot = bytes_.next<std::uint32_t>();
      break;
    default:
      descriptor.slot =
          SlotPlace{bytes_.below(region_.geometry().slots), bytes_.below(64), false}.packed();
  }
  descriptor.number =
      counter(static_cast<std::uint32_t>(region_.standing(victim_).entered.load(kRelaxed)));
  bytes_.take(descriptor.payload, bytes_.below(2) * kInlineBytes);
  descriptor.sequence.store(index + 1, std::memory_order_release);
  messages_[from % 8] = index + 1;
}

void Hostile::write_ack() {
  AckLine& ack = region_.acks(peer(), victim_);
  ack.release(counter(ack.released.load(kRelaxed) + 1));
  if (bytes_.below(4) == 0) ack.check.store(bytes_.next<std::uint32_t>(), kRelaxed);
  if (bytes_.below(4) == 0) ack.distance.store(bytes_.next<std::uint32_t>(), kRelaxed);
}

void Hostile::write_standing() {
  const bool is_own = bytes_.below(8) == 0;
  Standing& standing = region_.standing(is_own ? victim_ : peer());
  const Standing& victim = region_.standing(victim_);
  const auto number = static_cast<std::uint32_t>(victim.entered.load(kRelaxed));
  Waits& waits = bytes_.below(2) ? standing.in_call : standing.in_message;
  switch (bytes_.below(12)) {
    case 0:
      standing.life.store(counter(1 + bytes_.below(2)), kRelaxed);
      break;
    case 1:
      standing.expedited.store(bytes_.below(2), kRelaxed);
      break;
    case 2:
      standing.sleepers.store(counter(1), kRelaxed);
      break;
    case 3:
      standing.entered.store(counter(number), kRelaxed);
      break;
    case 4:
      standing.completed.store(counter(number), kRelaxed);
      break;
    case 5:
      standing.stamp_of(number).store(bytes_.below(2) ? likely_fingerprint(0)
                                                      : bytes_.next<std::uint64_t>());
      break;
    case 6:
      waits.whom.store(counter(bytes_.below(2) ? victim_ + 1 : Waits::kAnybody), kRelaxed);
      waits.count.fetch_add(bytes_.below(2), kRelaxed);
      break;
    case 7:
      waits.looks.fetch_add(bytes_.below(5), kRelaxed);
      waits.is_alone.store(1, kRelaxed);
      break;
    case 8:
      bytes_.take(&waits.what, 1 + bytes_.below(sizeof waits.what));
      break;
    case 9:
      bytes_.take(&standing.call, 1 + bytes_.below(sizeof standing.call));
      break;
    case 10:
      bytes_.take(&standing.input, sizeof standing.input);
      bytes_.take(&standing.output, sizeof standing.output);
      break;
    default:
      region_.header().spoken_ns.store(
          bytes_.below(2)
              ? bytes_.next<std::int64_t>()
              : static_cast<std::int64_t>((std::uint64_t{1} << 63) + bytes_.below(3) - 1),
          kRelaxed);
  }
}

void Hostile::write_packet() {
  const std::uint32_t from = peer();
  const std::uint32_t index = counter(packets_[from % 8]);
  LaneDescriptor& descriptor = region_.lane_descriptor(from, victim_, index);
  descriptor.kind.store(counter(1 + bytes_.below(4)), kRelaxed);
  descriptor.message.store(counter(bytes_.below(2)), kRelaxed);
  descriptor.tag.store(counter(bytes_.below(2)), kRelaxed);
  descriptor.bytes.store(bytes_.below(8) == 0 ? bytes_.next<std::uint64_t>()
                                              : kLengths[bytes_.below(std::size(kLengths))],
                         kRelaxed);
  for (auto& word : descriptor.words) {
    word.store(bytes_.below(4) == 0 ? bytes_.next<std::uint64_t>() : 0, kRelaxed);
  }
  descriptor.sequence.store(index + 1, std::memory_order_release);
  packets_[from % 8] = index + 1;
}

void Hostile::write_lane_ack() {
  AckLine& ack = region_.lane_acks(peer(), victim_);
  ack.release(counter(ack.released.load(kRelaxed) + 1));
  if (bytes_.below(4) == 0) ack.check.store(bytes_.next<std::uint32_t>(), kRelaxed);
}

void Hostile::write_trouble() {
  TroubleBoard& board = region_.trouble();
  // Seldom: it ends what the victim does.
  if (bytes_.below(8) != 0) return;
  board.kind.store(counter(1 + bytes_.below(5)), kRelaxed);
  board.reporter.store(bytes_.next<std::uint32_t>(), kRelaxed);
  bytes_.take(&board.text, bytes_.below(256) * 32);
  board.state.store(counter(bytes_.below(3)), std::memory_order_release);
}

}  // namespace fuzzing
