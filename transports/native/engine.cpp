#include "engine.hpp"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace transports {
namespace {

// Of the slots in use, what an inner cache holds beside the arrays.
constexpr std::uint64_t kHotBytes = 512 * 1024;

// Marks the engine as running a call; a second one at once is a mistake of the user.
class Turn {
 public:
  explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
    // Acquire and release: a call sees all that the one before it did, whichever thread it ran on.
    if (busy_.exchange(true, std::memory_order_acquire)) {
      throw Failure(FailureKind::misuse,
                    "two collectives at once on one communicator: calls from several threads must "
                    "be ordered by the program");
    }
  }
  ~Turn() { busy_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& busy_;
};

}  // namespace

Engine::Engine(const Region& region, std::uint32_t rank, const std::vector<Waiter::Peer>& peers,
               bool crowded)
    : region_(region),
      waiter_(region, rank, peers, crowded),
      peers_(region.geometry().ranks),
      slots_(region.geometry().slots),
      peer_inputs_(region.geometry().ranks),
      peer_outputs_(region.geometry().ranks),
      operands_(region.geometry().ranks + 1),
      block_operands_(region.geometry().ranks + 1),
      results_(region.geometry().ranks + 1) {
  for (auto& slot : slots_) slot.readers.reserve(region.geometry().ranks);
  auto& standing = region_.standing(rank);
  standing.pid.store(static_cast<std::uint32_t>(getpid()), std::memory_order_relaxed);
  standing.life.store(static_cast<std::uint32_t>(Life::running), std::memory_order_release);
}

Engine::~Engine() {
  close();
}

void Engine::close() {
  if (closed_.exchange(true) || forsaken_.load(std::memory_order_relaxed)) return;
  waiter_.stop();
  // Release: all our messages are posted for whoever sees that we are gone.
  region_.standing(rank()).life.store(static_cast<std::uint32_t>(Life::closed),
                                      std::memory_order_release);
}

void Engine::mismatch(const std::string& text) {
  if (forsaken_.load(std::memory_order_relaxed)) throw Failure(FailureKind::mismatch, text);
  waiter_.fail(FailureKind::mismatch, text);
}

void Engine::abort(const std::string& text) {
  if (forsaken_.load(std::memory_order_relaxed)) return;
  broken_.store(true, std::memory_order_relaxed);
  waiter_.report(FailureKind::aborted, text);
}

void Engine::refuse_in_child() const {
  if (!forsaken_.load(std::memory_order_relaxed)) return;
  throw Failure(FailureKind::misuse,
                "this process was forked from rank " + std::to_string(rank()) +
                    " and is no rank itself: collectives belong to the process that called init");
}

void Engine::check_usable() const {
  if (is_closed()) throw Failure(FailureKind::misuse, "the communicator is closed");
  waiter_.look_at_trouble();
  if (is_broken()) {
    throw Failure(FailureKind::misuse, "the communicator is broken: a call on it was interrupted");
  }
}

template <class Work>
void Engine::or_tell_others(const Work& work) {
  try {
    work();
  } catch (const Failure&) {
    broken_.store(true, std::memory_order_relaxed);  // the others know, or need not
    throw;
  } catch (...) {
    broken_.store(true, std::memory_order_relaxed);
    // A signal's handler, say, whose exception the program may handle: the others must not wait.
    waiter_.report(FailureKind::aborted, "rank " + std::to_string(rank()) + " was interrupted in " +
                                             waiter_.call_of(rank()));
    throw;
  }
}

std::uint64_t Engine::stamp_of(const Call& call, std::uint64_t number) {
  return call.fingerprint() ^ (number * 0x9e3779b97f4a7c15u);
}

std::uint64_t Engine::fingerprint_of(std::uint64_t stamp, const Call::Step& step) {
  // The length over all passes is part of it: both ends know it, and must agree from pass 0 on.
  return stamp ^ (step.bytes * 0xff51afd7ed558ccdu);
}

void Engine::execute(const Call& call, const std::byte* input, std::byte* output,
                     double timeout_seconds, bool background, OnceSlow once_slow) {
  refuse_in_child();  // first: the turn may be one that a thread of the parent had at the fork
  const Turn turn(busy_);
  check_usable();
  if (call.size() != region_.geometry().ranks || call.rank() != rank() ||
      call.slot_bytes() != region_.geometry().slot_bytes) {
    throw Failure(FailureKind::misuse, "the call was made for another communicator");
  }
  ++number_;
  stamp_ = stamp_of(call, number_);
  waiter_.begin(timeout_seconds, background, once_slow);
  or_tell_others([&] {
    locate(call, input, output);
    enter(call, number_, stamp_);
    if (call.scratch_bytes() > scratch_bytes_) {
      scratch_ = std::make_unique<std::byte[]>(call.scratch_bytes());
      scratch_bytes_ = call.scratch_bytes();
    }
    run(call, input, output);
  });
  region_.standing(rank()).completed.store(number_, std::memory_order_release);
}

void Engine::enter(const Call& call, std::uint64_t number, std::uint64_t stamp) {
  auto& standing = region_.standing(rank());
  if (shown_ != call.fingerprint()) {
    standing.call.set(call.text());
    shown_ = call.fingerprint();
  }
  standing.stamps[number % 2].store(stamp, std::memory_order_relaxed);
  // Release: text and stamp are there for whoever sees the number.
  standing.entered.store(number, std::memory_order_release);
}

bool Engine::next_is(const Call& call, double timeout_seconds, OnceSlow once_slow) {
  refuse_in_child();  // first: the turn may be one that a thread of the parent had at the fork
  const Turn turn(busy_);
  check_usable();
  waiter_.begin(timeout_seconds, false, once_slow);
  const auto first = std::find_if(call.steps().begin(), call.steps().end(), [](const auto& step) {
    return step.sources_begin != step.sources_end;
  });
  if (first == call.steps().end()) return true;  // alone
  const std::uint32_t peer = call.peers()[first->sources_begin];
  const std::uint32_t index = peers_[peer].received;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  enter(call, number_ + 1, 0);  // so that others see where this rank waits, though not yet for what
  or_tell_others([&] { waiter_.await(descriptor.sequence, index + 1, peer, "message from"); });
  return descriptor.fingerprint == fingerprint_of(stamp_of(call, number_ + 1), *first);
}

void Engine::run(const Call& call, const std::byte* input, std::byte* output) {
  for (std::uint64_t turn = 0; turn < call.passes(); ++turn) {
    for (const auto& each : call.steps()) step(call, each, turn, input, output);
    if (call.divide() != nullptr) {
      for (const auto& each : call.outputs()) {
        const std::uint64_t begin = turn * call.segment();
        if (begin >= each.length) continue;
        const std::uint64_t bytes = std::min(call.segment(), each.length - begin);
        call.divide()(output + each.at + begin, bytes / call.item_bytes(), call.size());
      }
    }
  }
}

void Engine::step(const Call& call, const Call::Step& step, std::uint64_t turn,
                  const std::byte* input, std::byte* output) {
  if (step.peeks_begin != step.reaches_end) return reach(call, step, input, output);
  const std::uint64_t segment = call.segment();
  const std::uint64_t segment_at = turn * segment;
  const Call::Item* const items_end = call.items() + step.items_end;
  const auto extent = [&](const Call::Item& item) {
    return item.length <= segment_at ? 0 : std::min(segment, item.length - segment_at);
  };
  std::uint64_t bytes = step.bytes;
  if (call.passes() > 1) {
    bytes = 0;
    for (auto* item = call.items() + step.items_begin; item != items_end; ++item) {
      bytes += extent(*item);
    }
    // Both ends know the lengths, so what is done needs no message; pass 0 always speaks.
    if (bytes == 0 && turn > 0) return;
  }
  const std::uint64_t fingerprint = fingerprint_of(stamp_, step);
  const std::uint32_t* const sources = call.peers() + step.sources_begin;
  const std::uint32_t source_count = step.sources_end - step.sources_begin;
  const std::uint32_t* const targets = call.peers() + step.targets_begin;
  const std::uint32_t target_count = step.targets_end - step.targets_begin;

  // The slot first, then the messages: see _fuse in collectives/lowering.py.
  std::byte* const outgoing = target_count == 0 ? nullptr : take_slot(targets, target_count, bytes);
  for (std::uint32_t i = 0; i < source_count; ++i) {
    operands_[i + (i >= step.own_at)] = take(call, sources[i], bytes, fingerprint);
  }
  std::uint64_t at = 0;  // within the message
  for (auto* item = call.items() + step.items_begin; item != items_end; ++item) {
    const std::uint64_t length = extent(*item);
    if (length == 0) continue;
    const std::byte* const own = own_operand(*item, segment_at, input, output, scratch_.get());
    std::byte* out = kept_at(*item, segment_at, output, scratch_.get());
    std::byte* also = outgoing == nullptr ? nullptr : outgoing + at;
    if (item->write == Space::output && call.streams() && input != output) {
      if (source_count != 0 && own != nullptr) {
        operands_[step.own_at] = own;
        reduce_past_caches(call, out, also, source_count + 1, length);
      } else {
        const std::byte* const from = own != nullptr ? own : operands_[step.own_at == 0 ? 1 : 0];
        if (also != nullptr) copy_to_both(also, nullptr, from, length);
        stream(out, also != nullptr ? also : from, length);
      }
    } else if (out != nullptr || also != nullptr) {
      if (out == nullptr) std::swap(out, also);
      if (source_count == 0 || own == nullptr) {
        const std::byte* const from = own != nullptr ? own : operands_[step.own_at == 0 ? 1 : 0];
        copy_to_both(out, also, from, length);
      } else {
        operands_[step.own_at] = own;
        call.reduce()(out, also, operands_.data(), source_count + 1, length / call.item_bytes());
      }
    }
    if (item + 1 != items_end) {
      for (std::uint32_t i = 0; i < source_count; ++i) operands_[i + (i >= step.own_at)] += length;
    }
    at += length;
  }
  if (target_count != 0) post(targets, target_count, outgoing, bytes, fingerprint);
  for (std::uint32_t i = 0; i < source_count; ++i) release(sources[i]);
  if (source_count + target_count != 0) wake(sources, source_count, targets, target_count);
}

void Engine::reduce_past_caches(const Call& call, std::byte* out, std::byte* also,
                                std::size_t operands, std::uint64_t length) {
  alignas(kLine) std::byte held[kHeldBytes];
  for (std::uint64_t at = 0; at < length; at += kHeldBytes) {
    const std::uint64_t bytes = std::min<std::uint64_t>(kHeldBytes, length - at);
    for (std::size_t i = 0; i < operands; ++i) block_operands_[i] = operands_[i] + at;
    // The slot, if it goes there too, is in the cache as well as anything.
    std::byte* const value = also != nullptr ? also + at : held;
    call.reduce()(value, nullptr, block_operands_.data(), operands, bytes / call.item_bytes());
    stream(out + at, value, bytes);
  }
}

std::byte* Engine::take_slot(const std::uint32_t* targets, std::uint32_t count,
                             std::uint64_t bytes) {
  const auto& geometry = region_.geometry();
  // A descriptor is free once the peer has released the message that lay in it before.
  for (std::uint32_t i = 0; i < count; ++i) {
    auto& peer = peers_[targets[i]];
    const std::uint32_t wanted = peer.sent - geometry.depth + 1;
    if (reached(peer.known_released, wanted)) continue;  // spares a cache miss a message
    const auto& released = region_.acks(targets[i], rank()).released;
    waiter_.await(released, wanted, targets[i], "release by");
    peer.known_released = released.load(std::memory_order_acquire);
  }
  if (bytes <= kInlineBytes) return inline_;
  Slot& slot = next_slot(bytes);
  for (const auto& reader : slot.readers) {
    if (is_released(reader)) continue;
    waiter_.await(region_.acks(reader.peer, rank()).released, reader.index + 1, reader.peer,
                  "release by");
  }
  slot.readers.clear();
  slot.filled = ++filled_;
  slot_ = static_cast<std::uint32_t>(&slot - slots_.data());
  return region_.slot(rank(), slot_);
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

bool Engine::is_released(const Message& message) {
  auto& peer = peers_[message.peer];
  // So many messages ago that it had to be released for a later one; its index may have wrapped.
  if (peer.sent - 1 - message.index >= region_.geometry().depth) return true;
  if (reached(peer.known_released, message.index + 1)) return true;
  // Acquire: what the peer read there it has read.
  peer.known_released = region_.acks(message.peer, rank()).released.load(std::memory_order_acquire);
  return reached(peer.known_released, message.index + 1);
}

void Engine::post(const std::uint32_t* targets, std::uint32_t count, const std::byte* payload,
                  std::uint64_t bytes, std::uint64_t fingerprint) {
  const bool is_inline = payload == inline_;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t peer = targets[i];
    const std::uint32_t index = peers_[peer].sent++;
    auto& descriptor = region_.descriptor(rank(), peer, index);
    descriptor.length = static_cast<std::uint32_t>(bytes);
    descriptor.fingerprint = fingerprint;
    descriptor.number = static_cast<std::uint32_t>(number_);
    descriptor.slot = is_inline ? kInlineSlot : slot_;
    if (is_inline) {
      std::memcpy(descriptor.payload, payload, bytes);
    } else {
      slots_[slot_].readers.push_back({peer, index});
    }
    // Release: descriptor and payload are complete for whoever sees the new sequence.
    descriptor.sequence.store(index + 1, std::memory_order_release);
  }
}

void Engine::wake(const std::uint32_t* sources, std::uint32_t source_count,
                  const std::uint32_t* targets, std::uint32_t target_count) {
  waiter_.fence_before_wake();
  for (std::uint32_t i = 0; i < target_count; ++i) {
    const auto last = peers_[targets[i]].sent - 1;
    waiter_.wake(region_.descriptor(rank(), targets[i], last).sequence, targets[i]);
  }
  for (std::uint32_t i = 0; i < source_count; ++i) {
    waiter_.wake(region_.acks(rank(), sources[i]).released, sources[i]);
  }
}

const std::byte* Engine::take(const Call& call, std::uint32_t peer, std::uint64_t bytes,
                              std::uint64_t fingerprint) {
  const std::uint32_t index = peers_[peer].received;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  waiter_.await(descriptor.sequence, index + 1, peer, "message from");
  // Read once: whatever else is written there later, we stay within the slot.
  const std::uint32_t length = __atomic_load_n(&descriptor.length, __ATOMIC_RELAXED);
  const std::uint32_t slot = __atomic_load_n(&descriptor.slot, __ATOMIC_RELAXED);
  if (descriptor.fingerprint != fingerprint || length != bytes) {
    fail_mismatch(call, peer, descriptor, bytes);
  }
  if (slot == kInlineSlot && length <= kInlineBytes) return descriptor.payload;
  if (slot >= region_.geometry().slots || length > region_.geometry().slot_bytes) {
    waiter_.fail(FailureKind::mismatch, waiter_.name_of(peer) + " posted a damaged message");
  }
  return region_.slot(peer, slot);
}

void Engine::release(std::uint32_t peer) {
  auto& acks = region_.acks(rank(), peer);
  // Release: our reads of the payload are done before the sender may write there again.
  acks.released.store(++peers_[peer].received, std::memory_order_release);
}

void Engine::fail_mismatch(const Call& call, std::uint32_t peer, const Descriptor& found,
                           std::uint64_t bytes) {
  const std::uint32_t number = __atomic_load_n(&found.number, __ATOMIC_RELAXED);
  std::string text = "ranks are in different calls: rank " + std::to_string(rank()) + " has " +
                     call.text() + " #" + std::to_string(number_) + ", rank " +
                     std::to_string(peer) + " has " + waiter_.call_of(peer);
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

}  // namespace transports
