// Calls by a one-sided plan on arrays that lie anywhere: the kernel copies from and to those of
// other ranks. So the sum of a chunk goes from the caches of who has added it up to where its peers
// want it, and no byte is moved on its way.
//
// Where arrays are, ranks tell each other first. To write into another process is to be trusted
// with its memory: nobody does unless the address is under the communicator's seal, the process is
// the one it was, and its rank is in the call still. One whose call fails says that it is not, and
// then waits for whoever was writing.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "engine.hpp"

namespace transports {
namespace {

// So much at a time: what is copied to or from stays in an inner cache. A multiple of every
// element's size.
constexpr std::uint64_t kPiece = 256 * 1024;

// From here on a call takes long, and its times differ less.
constexpr std::uint64_t kLongBytes = 1024 * 1024;

// Beyond it a rank that writes has been stopped: a piece takes some microseconds.
constexpr std::chrono::nanoseconds kWriting = std::chrono::seconds(1);

std::uint64_t pieces_of(const Call& call) {
  std::uint64_t pieces = 0;
  for (const auto& step : call.steps()) {
    for (auto i = step.items_begin; i < step.items_end; ++i) {
      pieces += (call.items()[i].length + kPiece - 1) / kPiece;
    }
  }
  return pieces;
}

std::uint64_t mixed(std::uint64_t word) {
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u;
  word = (word ^ (word >> 27)) * kPlaceMark;
  return word ^ (word >> 31);
}

// Not to be guessed by who does not know the key; whoever of the user's processes wants to read it
// can, and can write where he wants without.
std::uint64_t sealed(std::uint64_t key, std::uint64_t number, std::uint32_t rank,
                     const ArrayPlaces& places) {
  std::uint64_t seal = key;
  for (const std::uint64_t word :
       {number, std::uint64_t{rank}, places.input, places.output, places.may}) {
    seal = mixed(seal ^ word) + key;
  }
  return seal;
}

}  // namespace

void Engine::run_long(const Call& call, const std::byte* input, std::byte* output) {
  const bool may_reach = call.reached() != nullptr;
  // Of calls that reach, all that a trial depends on is the same on every rank.
  auto& trials = may_reach ? reaching_trials_ : lending_trials_;
  const std::uint64_t trial = call.fingerprint() ^ std::uint64_t{!may_reach && input == output};
  // Of other calls ranks may have arrays of different lengths.
  const bool is_long =
      may_reach && call.reached()->widest_input() + call.reached()->widest_output() >= kLongBytes;
  const bool meets_to_try = may_reach && call.meets_to_try();
  const bool is_tried = lend_ != Lend::always;
  const bool copies = !is_tried || trials.begin(trial, is_long, meets_to_try);
  const bool meets = may_reach && (copies || (meets_to_try && trials.is_trying()));
  auto began = std::chrono::steady_clock::now();
  const bool may = meets && exchange_places(call, input, output);
  if (meets && !may && is_tried) trials.refuse();
  // Else who is late would be waited for in what is timed of the one way, and not of the other.
  if (meets_to_try) began = std::chrono::steady_clock::now();
  if (may && copies) {
    const Call& reached = *call.reached();
    if (steps_to_fault_ != 0) steps_to_fault_ = std::max<std::uint64_t>(1, pieces_of(reached) / 2);
    run_reaching(reached, call.reached_begin(), input, output);
    if (reached.divide() != nullptr) divide(reached, 0, output);
    close_at_once();  // all have told this rank that they have done with its arrays
    ++reached_count_;
  } else {
    if (may) close_at_once();
    lends_ = copies;
    run_lending(call, input, output);
  }
  if (!is_tried) return;
  const auto took = std::chrono::steady_clock::now() - began;
  trials.end(static_cast<std::uint64_t>(took / std::chrono::nanoseconds(1)));
}

bool Engine::exchange_places(const Call& call, const std::byte* input, std::byte* output) {
  const bool may = may_be_reached(call, input, output);
  const ArrayPlaces places = open_arrays(input, output, may);
  bool all_may = may;
  const auto hear_others = [&] {
    for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
      if (peer != rank()) all_may = hear_place(peer) && all_may;
    }
  };
  const auto& root = call.reached_root();
  if (!root || peers_.size() == 2) {
    tell_others(places);
    hear_others();
  } else if (rank() == *root) {
    tell_others(places);
    hear_others();
    // Whether all may is what the others go on by.
    tell_others(open_arrays(input, output, all_may));
  } else {
    hear_place(*root);
    post_place(*root, places);
    all_may = hear_place(*root);
  }
  if (!all_may) close_at_once();
  return all_may;
}

void Engine::close_at_once() {
  is_open_ = false;
  region_.standing(rank()).open_for.store(0, std::memory_order_relaxed);
}

bool Engine::may_be_reached(const Call& call, const std::byte* input, const std::byte* output) {
  const Call& reached = *call.reached();
  return may_reach_ && is_traceable() &&
         (!reached.reaches_inputs() || copied_.holds(input, call.input_bytes())) &&
         (!reached.reaches_outputs() || copied_.holds(output, call.output_bytes(), true));
}

ArrayPlaces Engine::open_arrays(const std::byte* input, const std::byte* output, bool may) {
  ArrayPlaces places{reinterpret_cast<std::uint64_t>(input),
                     reinterpret_cast<std::uint64_t>(output), may, 0};
  places.seal = sealed(seal_, number_, rank(), places);
  is_open_ = true;
  // Relaxed: the messages order it.
  region_.standing(rank()).open_for.store(number_, std::memory_order_relaxed);
  return places;
}

void Engine::tell_others(const ArrayPlaces& places) {
  for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
    if (peer != rank()) post_place(peer, places);
  }
}

void Engine::post_place(std::uint32_t peer, const ArrayPlaces& places) {
  post_inline(peer, &places, sizeof places, stamp_ ^ kPlaceMark);
}

bool Engine::hear_place(std::uint32_t peer) {
  const std::uint32_t index = peers_[peer].taken++;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  waiter_.await(descriptor.sequence, index + 1, peer, "message from");
  if (descriptor.fingerprint != (stamp_ ^ kPlaceMark)) {
    fail_mismatch(peer, descriptor, sizeof(ArrayPlaces));
  }
  // Read once: what is under the seal is what is used.
  std::uint64_t words[sizeof(ArrayPlaces) / sizeof(std::uint64_t)];
  const auto* const there = reinterpret_cast<const std::uint64_t*>(descriptor.payload);
  for (std::size_t i = 0; i < std::size(words); ++i) {
    words[i] = __atomic_load_n(there + i, __ATOMIC_RELAXED);
  }
  ArrayPlaces places;
  std::memcpy(&places, words, sizeof places);
  if (places.seal != sealed(seal_, number_, peer, places)) {
    waiter_.fail(FailureKind::mismatch, waiter_.name_of(peer) + " posted a damaged message");
  }
  release_alone(peer);
  peer_inputs_[peer] = reinterpret_cast<std::byte*>(places.input);
  peer_outputs_[peer] = reinterpret_cast<std::byte*>(places.output);
  return places.may == 1;
}

void Engine::run_reaching(const Call& call, std::size_t first, const std::byte* input,
                          std::byte* output) {
  const auto& steps = call.steps();
  const auto moves = [&](std::size_t i) { return i < steps.size() && steps[i].bytes != 0; };
  const auto is_local = [&](std::size_t i) {
    return moves(i) && steps[i].peeks_begin == steps[i].reaches_end;
  };
  for (std::size_t i = first; i < steps.size();) {
    moving_.clear();
    for (; moves(i); ++i) moving_.push_back(&steps[i]);
    const std::size_t message = i++;  // a notify or wait
    const bool notifies =
        message < steps.size() && steps[message].targets_begin != steps[message].targets_end;
    // What a rank copies for itself after it has told others that it has done with their arrays, as
    // no other step needs it, goes with what it has copied by the kernel: of the two the one moves
    // what is in the caches, or goes past them, while the memory is at work for the other.
    for (; notifies && is_local(i); ++i) moving_.push_back(&steps[i]);
    move_together(call, input, output);
    if (message < steps.size()) step(call, steps[message], 0, input, output);
  }
}

void Engine::move_together(const Call& call, const std::byte* input, std::byte* output) {
  bool is_done = false;
  for (std::uint64_t at = 0; !is_done; at += kPiece) {
    is_done = true;
    for (const Call::Step* step : moving_) {
      for (auto i = step->items_begin; i < step->items_end; ++i) {
        const Call::Item& item = call.items()[i];
        if (at >= item.length) continue;
        reach_piece(call, *step, item, at, std::min(kPiece, item.length - at), input, output);
        is_done = is_done && item.length - at <= kPiece;
      }
    }
  }
}

void Engine::reach_piece(const Call& call, const Call::Step& step, const Call::Item& item,
                         std::uint64_t at, std::uint64_t bytes, const std::byte* input,
                         std::byte* output) {
  if (steps_to_fault_ != 0 && --steps_to_fault_ == 0) [[unlikely]]
    meet_fault();
  const Reach* const peeks = call.reaches() + step.peeks_begin;
  const Reach* const pokes = call.reaches() + step.pokes_begin;
  const std::uint32_t peek_count = step.pokes_begin - step.peeks_begin;
  const std::uint32_t poke_count = step.reaches_end - step.pokes_begin;
  const std::uint64_t* const offsets = call.offsets() + item.reaches;
  const std::byte* const own = own_operand(item, at, input, output, nullptr);
  std::byte* const kept = kept_at(item, at, output, nullptr);
  if (peek_count == 0 && kept == nullptr) {
    for (std::uint32_t i = 0; i < poke_count; ++i) copy_to(pokes[i], offsets[i] + at, own, bytes);
    return;
  }
  if (peek_count == 1 && own == nullptr && poke_count == 0 && kept != nullptr) {
    return copy_from(peeks[0], offsets[0] + at, kept, bytes);
  }
  for (std::uint32_t i = 0; i < peek_count; ++i) {
    std::byte* const room = room_like(i, at_peer(peeks[i]) + offsets[i] + at);
    copy_from(peeks[i], offsets[i] + at, room, bytes);
    operands_[i + (own != nullptr && i >= step.own_at)] = room;
  }
  if (own != nullptr) operands_[step.own_at] = own;
  const std::size_t count = peek_count + (own != nullptr);
  // What goes on to others is taken from the caches, though the result goes past them.
  const bool past_caches = call.streams() && kept != nullptr && !in_place(call, input, output);
  std::byte* const passed_on = poke_count != 0 && (past_caches || kept == nullptr)
                                   ? room_like(peek_count, kept != nullptr ? kept : own)
                                   : nullptr;
  std::byte* out = kept != nullptr ? kept : passed_on;
  std::byte* const also = kept != nullptr ? passed_on : nullptr;
  const Stores stores = past_caches ? Stores::past_caches : Stores::cached;
  if (count > 1) {
    call.reduce()(out, also, operands_.data(), count, bytes / call.item_bytes(), {stores});
  } else if (out != operands_[0] || also != nullptr) {
    copy_to_both(out, also, operands_[0], bytes, {stores});
  }
  for (std::uint32_t i = 0; i < poke_count; ++i) {
    copy_to(pokes[i], offsets[peek_count + i] + at, passed_on != nullptr ? passed_on : kept, bytes);
  }
}

std::byte* Engine::room_like(std::uint32_t number, const std::byte* like) {
  auto& room = rooms_[number];
  if (room == nullptr) room = std::make_unique<std::byte[]>(kPiece + kLine);
  // As far from a cache line: the kernel copies those that lie alike quicker, as do vectors.
  const auto begin = reinterpret_cast<std::uintptr_t>(room.get());
  const auto wanted = reinterpret_cast<std::uintptr_t>(like);
  return room.get() + (wanted - begin) % kLine;
}

void Engine::copy_from(const Reach& from, std::uint64_t offset, std::byte* into,
                       std::uint64_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(at_peer(from) + offset);
  check_copied(from.peer, pull(waiter_.pid_of(from.peer), address, into, bytes));
}

void Engine::copy_to(const Reach& to, std::uint64_t offset, const std::byte* from,
                     std::uint64_t bytes) {
  const auto address = reinterpret_cast<std::uint64_t>(at_peer(to) + offset);
  // First, as it takes a while, in which this rank might be stopped.
  if (waiter_.has_gone(to.peer)) waiter_.fail_lost(to.peer, "message from");
  auto& writes_to = region_.standing(rank()).writes_to;
  writes_to.store(to.peer + 1, std::memory_order_relaxed);
  // Pairs with close_arrays: either that rank sees that this one writes, or this one that it may
  // not.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  // Relaxed: the peer's arrays are not read by its leave.
  const bool is_open =
      region_.standing(to.peer).open_for.load(std::memory_order_relaxed) == number_;
  const Copied copied =
      is_open ? push(waiter_.pid_of(to.peer), address, from, bytes) : Copied::nothing_there;
  // Release: it is written for whoever sees that this rank has done.
  writes_to.store(0, std::memory_order_release);
  check_copied(to.peer, copied);
}

bool Engine::close_arrays() {
  if (!is_open_) return true;
  is_open_ = false;
  region_.standing(rank()).open_for.store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // see copy_to
  const auto began = std::chrono::steady_clock::now();
  for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
    // Acquire: what that rank has had copied is there, so that the program may write over it.
    const auto& writes_to = region_.standing(peer).writes_to;
    while (peer != rank() && writes_to.load(std::memory_order_acquire) == rank() + 1) {
      if (waiter_.has_ended_process(peer)) break;  // one that has only closed may still write
      if (std::chrono::steady_clock::now() - began > kWriting) {
        may_be_used_ = true;
        return false;
      }
      sched_yield();
    }
  }
  return true;
}

}  // namespace transports
