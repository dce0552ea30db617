// Messages that stay where they are until the receiver has had them copied.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>

#include "engine.hpp"

namespace transports {
namespace {

// Between the end of a process's memory, which may be large, and that of the process.
constexpr std::chrono::nanoseconds kEnding = std::chrono::seconds(10);
// For MPI to take what a call that has failed has sent: the other end takes it without its program.
constexpr std::chrono::nanoseconds kSending = std::chrono::seconds(1);
// For another reason to show.
constexpr std::chrono::nanoseconds kTold = std::chrono::milliseconds(100);

}  // namespace

void Engine::set_lend(Lend lend) {
  lend_ = lend;
  least_lent_ = lend == Lend::never    ? std::numeric_limits<std::uint64_t>::max()
                : lend == Lend::always ? kInlineBytes + 1
                                       : kLentBytes;
  least_carried_ = lend == Lend::never    ? std::numeric_limits<std::uint64_t>::max()
                   : lend == Lend::always ? Carrier::kLeastApart
                                          : kCarriedBytes;
}

void Engine::run_lending(const Call& call, const std::byte* input, std::byte* output) {
  run(call, input, output);
  for (const auto& message : lent_) {
    waiter_.await(region_.acks(message.peer, rank()).released, message.index + 1, message.peer,
                  "release by");
    released_by(message.peer);
  }
  lent_count_ += lent_.size();
  lent_.clear();
  lends_ = false;
}

bool Engine::may_stay(const Call& call, const Call::Step& step, bool in_place,
                      std::uint64_t bytes) const {
  return bytes >= least_carried_ && step.stays && !(step.lends_apart && in_place) &&
         std::all_of(call.peers() + step.targets_begin, call.peers() + step.targets_end,
                     [this](std::uint32_t peer) { return waiter_.is_remote(peer); });
}

void Engine::await_carried() {
  for (const auto& message : carried_) {
    waiter_.await(waiter_.carrier()->gone_to(message.peer), message.index + 1, message.peer,
                  "MPI to send to");
  }
  lent_count_ += carried_.size();
  carried_.clear();
}

bool Engine::has_gone(const Message& message) const {
  // Acquire: MPI has read what it has.
  const auto gone = waiter_.carrier()->gone_to(message.peer).load(std::memory_order_acquire);
  return reached(gone, message.index + 1);
}

Engine::Used Engine::end_copies() {
  // The program may write to its arrays next, and whoever gets that might take it for a result.
  const auto began = std::chrono::steady_clock::now();
  while (!carried_.empty()) {
    std::erase_if(carried_, [this](const Message& message) { return has_gone(message); });
    if (carried_.empty()) break;
    if (waiter_.carrier()->is_broken() || std::chrono::steady_clock::now() - began > kSending) {
      may_be_used_ = true;
      carried_.clear();
      close_arrays();
      return Used::sent;
    }
    waiter_.carry();
    sched_yield();
  }
  if (!lent_.empty()) {
    // Whoever copies what the program writes to its arrays from here on sees the trouble, too.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    lent_.clear();
  }
  return close_arrays() ? Used::not_ : Used::written;
}

bool Engine::may_lend(const Call& call, const Call::Step& step, bool in_place,
                      const std::byte* from, std::uint64_t bytes) {
  if (!step.lends || (step.lends_apart && in_place)) return false;
  for (auto i = step.targets_begin; i < step.targets_end; ++i) {
    // Relaxed: it says nothing of other memory.
    const auto& may = region_.acks(call.peers()[i], rank()).may_pull;
    if (may.load(std::memory_order_relaxed) == 0) return false;
  }
  return is_traceable() && copied_.holds(from, bytes);
}

const std::byte* Engine::pull_from(std::uint32_t peer, const Descriptor& descriptor,
                                   const Call& call, const Begun& begun, std::uint64_t turn,
                                   std::byte* output) {
  const auto* const word = reinterpret_cast<const std::uint64_t*>(descriptor.payload);
  const std::uint64_t address = __atomic_load_n(word, __ATOMIC_RELAXED);
  const Call::Step& step = *begun.step;
  const Call::Item& item = call.items()[step.items_begin];
  std::byte* into = nullptr;
  if (step.sources_end - step.sources_begin == 1 && step.items_end - step.items_begin == 1 &&
      item.read == Space::nowhere) {
    into = kept_at(item, turn * call.segment(), output, scratch_.get());
  }
  if (into == nullptr) {
    // Steps that are woven have their operands one behind the other.
    const auto woven = static_cast<std::size_t>(begun.operands - operands_.data()) /
                       (region_.geometry().ranks + 1);
    auto& room = pulled_[woven * region_.geometry().ranks + peer];
    if (room == nullptr) room = std::make_unique<std::byte[]>(region_.geometry().slot_bytes);
    into = room.get();
  }
  // Where this rank said that it may not, nobody lends. No step's message is longer than a slot.
  const bool may = peers_[peer].may_pull && begun.bytes <= region_.geometry().slot_bytes;
  check_copied(
      peer, may ? pull(waiter_.pid_of(peer), address, into, begun.bytes) : Copied::nothing_there);
  return into;
}

void Engine::check_copied(std::uint32_t peer, Copied copied) {
  // A rank that gave up says so, or sees another say so, before its program goes on and changes the
  // array. And a number of a process is its own only while that lives.
  std::atomic_thread_fence(std::memory_order_acquire);
  const auto began = std::chrono::steady_clock::now();
  for (;;) {
    waiter_.look_at_any_trouble();
    if (waiter_.has_gone(peer)) waiter_.fail_lost(peer, "message from");
    if (copied == Copied::done) return;
    const auto waited = std::chrono::steady_clock::now() - began;
    if (waited > (copied == Copied::gone ? kEnding : kTold)) break;
    sched_yield();
  }
  if (copied == Copied::gone) waiter_.fail_lost(peer, "message from");
  if (copied == Copied::forbidden) {
    waiter_.fail(FailureKind::misuse,
                 "rank " + std::to_string(rank()) + " may copy from and to the memory of " +
                     waiter_.name_of(peer) +
                     " no more: has one of them changed its user or its rights since init? With "
                     "COLLECTIVES_LEND=never it need not");
  }
  waiter_.fail(FailureKind::mismatch,
               waiter_.name_of(peer) +
                   " posted a damaged message, or has memory there that the kernel does not copy");
}

}  // namespace transports
