// The steps of a call: what an instruction does with its slot, its messages and its chunks.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "engine.hpp"

namespace transports {
namespace {

// From here on a message is shifted in its slot: a shorter one is to touch as few lines as it can.
constexpr std::uint64_t kShiftedBytes = 64 * 1024;

// From here on how far the readers are decides how a message is stored.
constexpr std::uint64_t kFarBytes = 32 * 1024;

// Of steps that are worked on together, how much of each at a time: so little that the stores past
// the caches of one are under way while the processor waits for what another reads; a multiple of
// every element's size.
constexpr std::uint64_t kWovenBytes = 512;

}  // namespace

void Engine::run(const Call& call, const std::byte* input, std::byte* output) {
  if (call.passes() == 1) {
    for (const auto& each : call.steps()) step(call, each, 0, input, output);
    if (call.divide() != nullptr) divide(call, 0, output);
    return;
  }
  const std::uint64_t waves = call.passes() + call.longest_delay();
  for (std::uint64_t wave = 0; wave < waves; ++wave) {
    if (!call.weaves() || !weave(call, wave, input, output)) {
      for (const auto& each : call.steps()) {
        if (is_due(call, each, wave)) step(call, each, wave - each.delay, input, output);
      }
    }
    if (call.divide() != nullptr && wave >= call.longest_delay()) {
      divide(call, wave - call.longest_delay(), output);
    }
  }
}

void Engine::divide(const Call& call, std::uint64_t turn, std::byte* output) {
  for (const auto& each : call.outputs()) {
    const std::uint64_t begin = turn * call.segment();
    if (begin >= each.length) continue;
    const std::uint64_t bytes = std::min(call.segment(), each.length - begin);
    call.divide()(output + each.at + begin, bytes / call.item_bytes(), call.size());
  }
}

bool Engine::is_due(const Call& call, const Call::Step& step, std::uint64_t wave) {
  return wave >= step.delay && wave - step.delay < call.passes();
}

void Engine::step(const Call& call, const Call::Step& step, std::uint64_t turn,
                  const std::byte* input, std::byte* output) {
  if (step.peeks_begin != step.reaches_end) return reach(call, step, input, output);
  const std::uint64_t bytes = bytes_of(call, step, turn);
  // Both ends know the lengths, so what is done needs no message; pass 0 always speaks.
  if (bytes == 0 && turn > 0) return;
  Begun begun = begin(call, step, turn, bytes, operands_.data(), input, output);
  const std::uint32_t items_end = bytes == 0 ? step.items_begin : step.items_end;
  std::uint64_t at = 0;  // within the message
  for (auto* item = call.items() + step.items_begin; item != call.items() + items_end; ++item) {
    const Strand strand = strand_of(call, begun, *item, turn, at, input, output);
    work(call, strand, 0, strand.length, 0);
    at += strand.length;
    for (std::uint32_t i = 0; i < step.sources_end - step.sources_begin; ++i) {
      begun.operands[i + (i >= step.own_at)] += strand.length;
    }
  }
  end(call, begun);
}

bool Engine::weave(const Call& call, std::uint64_t wave, const std::byte* input,
                   std::byte* output) {
  std::size_t count = 0;
  std::uint64_t shortest = UINT64_MAX;
  for (const auto& each : call.steps()) {
    if (!is_due(call, each, wave)) continue;
    shortest = std::min(shortest, bytes_of(call, each, wave - each.delay));
    ++count;
  }
  if (count < 2 || shortest < kWovenBytes) return false;
  std::array<Begun, kMostWoven> begun;
  std::array<Strand, kMostWoven> strands;
  count = 0;
  for (const auto& each : call.steps()) {
    if (!is_due(call, each, wave)) continue;
    const std::uint64_t turn = wave - each.delay;
    const auto** const operands = operands_.data() + count * (call.size() + 1);
    begun[count] = begin(call, each, turn, bytes_of(call, each, turn), operands, input, output);
    strands[count] =
        strand_of(call, begun[count], call.items()[each.items_begin], turn, 0, input, output);
    ++count;
  }
  // Each from where its stores meet a cache line, so that every piece is made of whole ones.
  std::array<std::uint64_t, kMostWoven> at;
  std::uint64_t pieces = UINT64_MAX;
  for (std::size_t i = 0; i < count; ++i) {
    const Strand& strand = strands[i];
    at[i] = -reinterpret_cast<std::uintptr_t>(strand.out) % kLine;
    if (strand.count > 1 && at[i] % call.item_bytes() != 0) at[i] = 0;  // it never meets one
    work(call, strand, 0, at[i], strand.length - at[i]);
    pieces = std::min(pieces, (strand.length - at[i]) / kWovenBytes);
  }
  for (std::uint64_t piece = 0; piece < pieces; ++piece) {
    for (std::size_t i = 0; i < count; ++i) {
      work(call, strands[i], at[i], kWovenBytes, strands[i].length - at[i] - kWovenBytes);
      at[i] += kWovenBytes;
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    work(call, strands[i], at[i], strands[i].length - at[i], 0);
  }
  for (std::size_t i = 0; i < count; ++i) end(call, begun[i]);
  return true;
}

[[gnu::always_inline]] inline std::uint64_t Engine::bytes_of(const Call& call,
                                                             const Call::Step& step,
                                                             std::uint64_t turn) {
  if (call.passes() == 1) return step.bytes;
  std::uint64_t bytes = 0;
  for (auto* item = call.items() + step.items_begin; item != call.items() + step.items_end;
       ++item) {
    bytes += extent(call, *item, turn);
  }
  return bytes;
}

[[gnu::always_inline]] inline std::uint64_t Engine::extent(const Call& call, const Call::Item& item,
                                                           std::uint64_t turn) {
  const std::uint64_t segment_at = turn * call.segment();
  return item.length <= segment_at ? 0 : std::min(call.segment(), item.length - segment_at);
}

[[gnu::always_inline]] inline Engine::Begun Engine::begin(const Call& call, const Call::Step& step,
                                                          std::uint64_t turn, std::uint64_t bytes,
                                                          const std::byte** operands,
                                                          const std::byte* input,
                                                          std::byte* output) {
  if (steps_to_fault_ != 0 && --steps_to_fault_ == 0) [[unlikely]]
    meet_fault();
  Begun begun{&step, bytes, fingerprint_of(stamp_, step), nullptr, nullptr, false, {}, operands};
  const std::uint32_t target_count = step.targets_end - step.targets_begin;
  // The slot first, then the messages: see _fuse in collectives/lowering.py.
  if (target_count != 0) {
    const Call::Item* const item = call.items() + step.items_begin;  // notifies have none
    const std::uint64_t segment_at = turn * call.segment();
    const std::byte* lent = nullptr;
    if (lends_ && bytes >= least_lent_) [[unlikely]] {
      lent = step.lends_kept ? kept_at(*item, segment_at, output, scratch_.get())
                             : own_operand(*item, segment_at, input, output, scratch_.get());
    }
    if (lent != nullptr && may_lend(call, step, input == output, lent, bytes)) [[unlikely]] {
      begun.lent = lent;
      take_room(call.peers() + step.targets_begin, target_count);
      for (std::uint32_t i = 0; i < target_count; ++i) {
        const std::uint32_t peer = call.peers()[step.targets_begin + i];
        lent_.push_back({peer, peers_[peer].reserved++});
      }
    } else {
      if (bytes >= kShiftedBytes) {
        const std::byte* like = own_operand(*item, segment_at, input, output, scratch_.get());
        if (like == nullptr) like = kept_at(*item, segment_at, output, scratch_.get());
        begun.place.shift = reinterpret_cast<std::uintptr_t>(like) % kLine;
      }
      if (waiter_.carrier() != nullptr && may_stay(call, step, input == output, bytes)) {
        begun.lent = step.lends_kept
                         ? kept_at(*item, segment_at, output, scratch_.get())
                         : own_operand(*item, segment_at, input, output, scratch_.get());
        begun.is_carried = begun.lent != nullptr;
      }
      if (bytes >= kFarBytes && !begun.is_carried) {
        begun.place.is_past_caches = is_any_far(call.peers() + step.targets_begin, target_count);
      }
      begun.outgoing =
          take_slot(call.peers() + step.targets_begin, target_count, bytes, begun.place.shift);
      begun.place.index = slot_;
      if (begun.is_carried) begun.outgoing = nullptr;  // it has the slot on the other hosts
    }
  }
  for (std::uint32_t i = 0; i < step.sources_end - step.sources_begin; ++i) {
    operands[i + (i >= step.own_at)] = take(call, begun, i, turn, output);
  }
  return begun;
}

[[gnu::always_inline]] inline Engine::Strand Engine::strand_of(const Call& call, const Begun& begun,
                                                               const Call::Item& item,
                                                               std::uint64_t turn, std::uint64_t at,
                                                               const std::byte* input,
                                                               std::byte* output) {
  const auto& step = *begun.step;
  const std::uint32_t source_count = step.sources_end - step.sources_begin;
  const std::uint64_t segment_at = turn * call.segment();
  const std::byte* const own = own_operand(item, segment_at, input, output, scratch_.get());
  Strand strand{};
  strand.length = extent(call, item, turn);
  strand.out = kept_at(item, segment_at, output, scratch_.get());
  strand.also = begun.outgoing == nullptr ? nullptr : begun.outgoing + at;
  if (item.write == Space::output && call.streams() && !in_place(call, input, output)) {
    strand.stores = Stores::past_caches;
  }
  if (begun.place.is_past_caches) {
    // What alone goes past the caches comes first.
    if (strand.out == nullptr || strand.stores == Stores::cached) {
      std::swap(strand.out, strand.also);
      strand.stores = Stores::past_caches;
    } else {
      strand.stores = Stores::both_past_caches;
    }
  } else if (strand.out == nullptr) {
    std::swap(strand.out, strand.also);
  }
  if (own != nullptr) begun.operands[step.own_at] = own;
  strand.count = source_count + (own != nullptr);
  // Without an own operand its place, if it is the first, is empty.
  strand.operands = begun.operands + (own == nullptr && step.own_at == 0);
  return strand;
}

[[gnu::always_inline]] inline void Engine::work(const Call& call, const Strand& strand,
                                                std::uint64_t at, std::uint64_t bytes,
                                                std::uint64_t follows) {
  if (bytes == 0 || strand.out == nullptr) return;
  std::byte* out = strand.out + at;
  std::byte* also = strand.also == nullptr ? nullptr : strand.also + at;
  if (strand.count == 1) {
    const std::byte* const from = strand.operands[0] + at;
    if (out == from) [[unlikely]] {  // it is there already
      if (also == nullptr) return;
      out = std::exchange(also, nullptr);
    } else if (also == from) [[unlikely]] {
      also = nullptr;
    }
    return copy_to_both(out, also, from, bytes, {strand.stores, follows});
  }
  const std::byte* const* operands = strand.operands;
  if (at != 0) {
    for (std::size_t i = 0; i < strand.count; ++i) block_operands_[i] = operands[i] + at;
    operands = block_operands_.data();
  }
  call.reduce()(out, also, operands, strand.count, bytes / call.item_bytes(),
                {strand.stores, follows / call.item_bytes()});
}

[[gnu::always_inline]] inline void Engine::end(const Call& call, const Begun& begun) {
  const std::uint32_t* const sources = call.peers() + begun.step->sources_begin;
  const std::uint32_t* const targets = call.peers() + begun.step->targets_begin;
  const std::uint32_t source_count = begun.step->sources_end - begun.step->sources_begin;
  const std::uint32_t target_count = begun.step->targets_end - begun.step->targets_begin;
  if (target_count != 0) {
    // Who is told may read, or overwrite, what this rank stored past the caches.
    if (begun.place.is_past_caches ||
        (call.streams() && (call.is_one_sided() || begun.lent != nullptr))) {
      end_streaming();
    }
    post(targets, target_count, begun);
  }
  for (std::uint32_t i = 0; i < source_count; ++i) release(sources[i]);
  if (source_count + target_count != 0) wake(sources, source_count, targets, target_count);
}

[[gnu::always_inline]] inline void Engine::take_room(const std::uint32_t* targets,
                                                     std::uint32_t count) {
  // A descriptor is free once the peer has released the message that lay in it before.
  for (std::uint32_t i = 0; i < count; ++i) {
    auto& peer = peers_[targets[i]];
    const std::uint32_t wanted = peer.reserved - region_.geometry().depth + 1;
    if (reached(peer.known_released, wanted)) continue;  // spares a cache miss a message
    const auto& released = region_.acks(targets[i], rank()).released;
    waiter_.await(released, wanted, targets[i], "release by");
    released_by(targets[i]);
  }
}

[[gnu::always_inline]] inline std::byte* Engine::take_slot(const std::uint32_t* targets,
                                                           std::uint32_t count, std::uint64_t bytes,
                                                           std::uint32_t shift) {
  take_room(targets, count);
  if (bytes <= kInlineBytes) {
    for (std::uint32_t i = 0; i < count; ++i) ++peers_[targets[i]].reserved;
    return inline_;
  }
  Slot& slot = next_slot(bytes);
  for (const auto& reader : slot.readers) {
    if (is_released(reader)) continue;
    waiter_.await(region_.acks(reader.peer, rank()).released, reader.index + 1, reader.peer,
                  "release by");
    released_by(reader.peer);
  }
  slot.readers.clear();
  // From now on, so that the next message of this rank finds it taken.
  for (std::uint32_t i = 0; i < count; ++i) {
    slot.readers.push_back({targets[i], peers_[targets[i]].reserved++});
  }
  slot.filled = ++filled_;
  slot_ = static_cast<std::uint32_t>(&slot - slots_.data());
  return region_.slot(rank(), {slot_, shift, false});
}

[[gnu::always_inline]] inline void Engine::post(const std::uint32_t* targets, std::uint32_t count,
                                                const Begun& begun) {
  const bool is_inline = begun.outgoing == inline_;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t peer = targets[i];
    const std::uint32_t index = peers_[peer].sent++;
    auto& descriptor = region_.descriptor(rank(), peer, index);
    descriptor.length = static_cast<std::uint32_t>(begun.bytes);
    descriptor.fingerprint = begun.fingerprint;
    descriptor.number = static_cast<std::uint32_t>(number_);
    descriptor.slot = is_inline ? kInlineSlot : begun.place.packed();
    if (is_inline) std::memcpy(descriptor.payload, inline_, begun.bytes);
    if (begun.is_carried) {
      waiter_.carrier()->send_from(peer, index, begun.lent, begun.bytes);
      carried_.push_back({peer, index});
    } else if (begun.lent != nullptr) [[unlikely]] {
      descriptor.slot = kLentSlot;
      const auto address = reinterpret_cast<std::uint64_t>(begun.lent);
      std::memcpy(descriptor.payload, &address, sizeof address);
    }
    // Release: descriptor and payload are complete for whoever sees the new sequence.
    descriptor.sequence.store(index + 1, std::memory_order_release);
  }
}

[[gnu::always_inline]] inline void Engine::wake(const std::uint32_t* sources,
                                                std::uint32_t source_count,
                                                const std::uint32_t* targets,
                                                std::uint32_t target_count) {
  waiter_.fence_before_wake();
  for (std::uint32_t i = 0; i < target_count; ++i) {
    const auto last = peers_[targets[i]].sent - 1;
    waiter_.wake(region_.descriptor(rank(), targets[i], last).sequence, targets[i]);
  }
  for (std::uint32_t i = 0; i < source_count; ++i) {
    waiter_.wake(region_.acks(rank(), sources[i]).released, sources[i]);
  }
}

[[gnu::always_inline]] inline const std::byte* Engine::take(const Call& call, const Begun& begun,
                                                            std::uint32_t source,
                                                            std::uint64_t turn, std::byte* output) {
  const std::uint32_t peer = call.peers()[begun.step->sources_begin + source];
  const std::uint32_t index = peers_[peer].taken++;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  waiter_.await(descriptor.sequence, index + 1, peer, "message from");
  // Read once: whatever else is written there later, we stay within the slot.
  const std::uint32_t length = __atomic_load_n(&descriptor.length, __ATOMIC_RELAXED);
  const std::uint32_t slot = __atomic_load_n(&descriptor.slot, __ATOMIC_RELAXED);
  if (descriptor.fingerprint != begun.fingerprint || length != begun.bytes) {
    fail_mismatch(peer, descriptor, begun.bytes);
  }
  if (slot == kInlineSlot && length <= kInlineBytes) return descriptor.payload;
  if (slot == kLentSlot) [[unlikely]]
    return pull_from(peer, descriptor, call, begun, turn, output);
  const SlotPlace place = SlotPlace::unpacked(slot);
  if (place.index >= region_.geometry().slots || place.shift >= kLine ||
      length > region_.geometry().slot_bytes) {
    waiter_.fail(FailureKind::mismatch, waiter_.name_of(peer) + " posted a damaged message");
  }
  const std::byte* const payload = region_.slot(peer, place);
  if (length >= kFarBytes && !place.is_past_caches) measure_distance(peer, payload);
  return payload;
}

[[gnu::always_inline]] inline void Engine::release(std::uint32_t peer) {
  region_.acks(rank(), peer).release(++peers_[peer].released);
}

void Engine::post_inline(std::uint32_t peer, const void* words, std::size_t bytes,
                         std::uint64_t fingerprint) {
  Begun begun{nullptr, bytes, fingerprint, take_slot(&peer, 1, bytes, 0),
              nullptr, false, {},          nullptr};
  std::memcpy(begun.outgoing, words, bytes);
  post(&peer, 1, begun);
  wake(nullptr, 0, &peer, 1);
}

void Engine::release_alone(std::uint32_t peer) {
  release(peer);
  wake(&peer, 1, nullptr, 0);
}

}  // namespace transports
