#include "engine.hpp"

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace transports {
namespace {

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
  // Of one that has been taken already.
  Turn(std::atomic<bool>& busy, std::adopt_lock_t) : busy_(busy) {}
  ~Turn() { busy_.store(false, std::memory_order_release); }

 private:
  std::atomic<bool>& busy_;
};

constexpr const char* kMayBeWritten =
    "a rank was stopped while it wrote to the array of the result: until it has ended, nothing "
    "else "
    "may lie there, and it is kept";
constexpr const char* kMayBeSent =
    "MPI has not done with what this rank sends from its arrays: until the others have ended, what "
    "the program writes there may reach them, and the arrays are kept";

}  // namespace

Engine::Engine(const Region& region, std::uint32_t rank, const std::vector<Waiter::Peer>& peers,
               bool crowded)
    : region_(region),
      waiter_(region, rank, peers, crowded),
      peers_(region.geometry().ranks),
      slots_(region.geometry().slots),
      peer_inputs_(region.geometry().ranks),
      peer_outputs_(region.geometry().ranks),
      operands_((region.geometry().ranks + 1) * kMostWoven),
      block_operands_(region.geometry().ranks + 1),
      results_(region.geometry().ranks + 1),
      lending_trials_(region, rank, 0),
      reaching_trials_(region, rank, kTrialPlaces),
      pulled_(region.geometry().ranks * kMostWoven),
      rooms_(region.geometry().ranks) {
  for (auto& slot : slots_) slot.readers.reserve(region.geometry().ranks);
  auto& standing = region_.standing(rank);
  for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
    // Without a pidfd the number may be one of another pid namespace.
    const bool may =
        peer != rank && peer < peers.size() && peers[peer].pidfd >= 0 && may_copy(peers[peer].pid);
    peers_[peer].may_pull = may;
    may_reach_ = may_reach_ && (may || peer == rank);
    region_.acks(rank, peer).may_pull.store(may, std::memory_order_relaxed);
  }
  may_reach_ = may_reach_ && are_numbers_plenty();
  standing.pid.store(static_cast<std::uint32_t>(getpid()), std::memory_order_relaxed);
  standing.life.store(static_cast<std::uint32_t>(Life::running), std::memory_order_release);
}

Engine::~Engine() {
  close();
}

void Engine::close() {
  if (closed_.exchange(true) || forsaken_.load(std::memory_order_relaxed)) return;
  // Release: all our messages are posted for whoever sees that we are gone. Before the waits of
  // other threads end: what their program then does to arrays that are lent goes to nobody.
  const auto life = has_moved_.load(std::memory_order_relaxed) ? Life::moved : Life::closed;
  region_.standing(rank()).life.store(static_cast<std::uint32_t>(life), std::memory_order_seq_cst);
  waiter_.stop();
}

void Engine::check_complete() {
  if (is_closed() || is_forsaken() || waiter_.knows_of_trouble()) return;
  // Of a call that is under way, in another thread or below a signal's handler, a message may have
  // come and not been taken yet: what did not fit is its own to find. Acquire: as Turn.
  bool is_under_way = false;
  if (!busy_.compare_exchange_strong(is_under_way, true, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
    return;
  }
  const Turn turn(busy_, std::adopt_lock);
  or_tell_others([this] {
    const auto& trouble = region_.trouble();
    if (trouble.state.load(std::memory_order_acquire) == TroubleBoard::published) {
      const auto kind = trouble.kind.load(std::memory_order_relaxed);
      // What became of others is no concern of a rank that has done all its calls.
      if (kind != static_cast<std::uint32_t>(FailureKind::mismatch)) return;
      waiter_.look_at_trouble();
    }
    if (is_broken()) return;
    waiter_.carry();  // what has come from other hosts
    for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
      if (peer != rank()) look_for_untaken(peer);
    }
  });
}

void Engine::fail(FailureKind kind, const std::string& text) {
  if (forsaken_.load(std::memory_order_relaxed)) throw Failure(kind, text);
  waiter_.fail(kind, text);
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
  } catch (const Failure& failure) {
    broken_.store(true, std::memory_order_relaxed);  // the others know, or need not
    const Used used = end_copies();
    if (used == Used::not_) throw;
    throw Failure(failure.kind(), std::string(failure.what()) + "; " +
                                      (used == Used::written ? kMayBeWritten : kMayBeSent));
  } catch (...) {
    broken_.store(true, std::memory_order_relaxed);
    // A signal's handler, say, whose exception the program may handle: the others must not wait.
    try {
      waiter_.report(FailureKind::aborted, "rank " + std::to_string(rank()) +
                                               " was interrupted in " + waiter_.call_of(rank()));
    } catch (const std::bad_alloc&) {  // no words, then: they hear it when this rank closes
    }
    end_copies();
    throw;
  }
}

std::uint64_t Engine::stamp_of(const Call& call, std::uint64_t number) {
  return call.fingerprint() ^ (number * 0x9e3779b97f4a7c15u);
}

void Engine::execute(const Call& call, const std::byte* input, std::byte* output,
                     double timeout_seconds, bool background, OnceSlow once_slow,
                     bool* stay_in_use) {
  refuse_in_child();  // first: the turn may be one that a thread of the parent had at the fork
  const Turn turn(busy_);
  check_usable();
  if (call.size() != region_.geometry().ranks || call.rank() != rank() ||
      call.slot_bytes() != region_.geometry().slot_bytes ||
      call.in_flight() > region_.geometry().in_flight()) {
    throw Failure(FailureKind::misuse, "the call was made for another communicator");
  }
  ++number_;
  stamp_ = stamp_of(call, number_);
  waiter_.begin(timeout_seconds, background, once_slow);
  try {
    or_tell_others([&] { run_whole(call, input, output, background); });
  } catch (...) {
    // Within the turn: it is of this call, not of one of another thread.
    if (stay_in_use != nullptr) *stay_in_use = std::exchange(may_be_used_, false);
    throw;
  }
  if (call.streams()) end_streaming();  // before other threads of the program hear of the result
  region_.standing(rank()).completed.store(number_, std::memory_order_release);
}

void Engine::run_whole(const Call& call, const std::byte* input, std::byte* output,
                       bool background) {
  locate(call, input, output);
  if (is_background_ != background) {
    is_background_ = background;
    region_.standing(rank()).is_background.store(background, std::memory_order_relaxed);
  }
  enter(call, number_, stamp_);
  if (call.scratch_bytes() > scratch_bytes_) {
    scratch_ = std::make_unique<std::byte[]>(call.scratch_bytes());
    scratch_bytes_ = call.scratch_bytes();
  }
  if (fault_.is_due) {
    fault_.is_due = false;
    steps_to_fault_ = std::max<std::uint64_t>(1, call.steps().size() * call.passes() / 2);
  }
  if (call.reached() != nullptr || call.longest_message() >= least_lent_) {
    run_long(call, input, output);
  } else {
    run(call, input, output);
  }
  if (!carried_.empty()) await_carried();
  if (steps_to_fault_ != 0) [[unlikely]] {  // it had fewer steps than it might have had
    steps_to_fault_ = 0;
    meet_fault();
  }
  for (const auto peer : call.silent_peers()) look_for_untaken(peer);
}

bool Engine::take_back_signal() {
  const bool was_to_come = fault_.is_due || steps_to_fault_ != 0;
  fault_.is_due = false;
  steps_to_fault_ = 0;
  return was_to_come;
}

void Engine::meet_fault() {
  if (fault_.signal == 0) ::_exit(fault_.code);
  ::kill(::getpid(), fault_.signal);
}

void Engine::enter(const Call& call, std::uint64_t number, std::uint64_t stamp) {
  auto& standing = region_.standing(rank());
  if (shown_ != call.fingerprint()) {
    standing.call.set(call.text());
    // Relaxed: the number orders it, as it does the text.
    standing.call_changes.fetch_add(1, std::memory_order_relaxed);
    shown_ = call.fingerprint();
  }
  standing.stamp_of(number).store(stamp, std::memory_order_relaxed);
  // Release: text and stamp are there for whoever sees the number.
  standing.entered.store(number, std::memory_order_release);
}

Found Engine::found(const Call& call) {
  bool is_busy = false;
  if (!busy_.compare_exchange_strong(is_busy, true, std::memory_order_acquire,
                                     std::memory_order_relaxed)) {
    return Found::nothing;
  }
  const Turn turn(busy_, std::adopt_lock);
  return lend_ == Lend::always ? Found::copies : reaching_trials_.found(call.fingerprint());
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
  const std::uint32_t index = peers_[peer].released;
  const auto& descriptor = region_.descriptor(peer, rank(), index);
  enter(call, number_ + 1, 0);  // so that others see where this rank waits, though not yet for what
  or_tell_others([&] { waiter_.await(descriptor.sequence, index + 1, peer, "message from"); });
  const std::uint64_t stamp = stamp_of(call, number_ + 1);
  return descriptor.fingerprint == fingerprint_of(stamp, *first) ||
         (call.reached_root() && descriptor.fingerprint == (stamp ^ kPlaceMark));
}

}  // namespace transports
