// How a rank waits for a counter of a peer: spin briefly, then yield, then sleep in the kernel.
//
// While it waits it looks, every few milliseconds, at what else may end the wait: trouble that
// another rank reported, the end of the peer it waits for, the deadline, a signal.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "carrier.hpp"
#include "circle.hpp"
#include "failure.hpp"
#include "region.hpp"

namespace transports {

// On the clock that all ranks of a host share.
std::int64_t now_ns();
// A number of seconds as people read it.
std::string seconds_text(double seconds);

// Owns a file descriptor.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  FileDescriptor& operator=(FileDescriptor&&) = delete;
  FileDescriptor(const FileDescriptor&) = delete;
  ~FileDescriptor();
  int get() const { return fd_; }

 private:
  int fd_;
};

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// How long to spin and yield before sleeping.
struct Patience {
  std::uint32_t spins;
  std::uint32_t yields;
};

// Shows in `waits` for whom a wait is, while it lasts.
class ShownWait {
 public:
  ShownWait(Waits& waits, std::uint32_t whom) : waits_(waits) {
    waits_.is_alone.store(0, std::memory_order_relaxed);
    set(whom);
  }
  ~ShownWait() { set(Waits::kNobody); }
  ShownWait(const ShownWait&) = delete;
  ShownWait& operator=(const ShownWait&) = delete;
  // The wait was found not to be over.
  void looked() { waits_.looks.fetch_add(1, std::memory_order_relaxed); }
  // Release: whoever sees it sees what else this rank has shown before.
  void set_alone(bool alone) { waits_.is_alone.store(alone, std::memory_order_release); }

 private:
  void set(std::uint32_t whom) {
    waits_.whom.store(whom, std::memory_order_relaxed);
    // Release: whoever sees the new count sees for whom.
    waits_.count.fetch_add(1, std::memory_order_release);
  }

  Waits& waits_;
};

// What a call does once when a wait turns slow, so that a quick one need not: let go of a lock.
struct OnceSlow {
  void (*run)(void*) = nullptr;
  void* with = nullptr;
};

// A rank that others wait for, or that waits with them, in words: "is in no collective; ...".
struct Sighting {
  std::uint32_t rank;
  std::string name;
  std::string text;
  bool holds_up;  // it waits for nobody itself, as far as can be seen
};

// What only Python knows; any may be empty.
struct Describe {
  // The words of a long wait: its first line, and what ranks do; `aloud` also prints them.
  std::function<std::string(const std::string&, const std::vector<Sighting>&, bool aloud)> wait;
  // Where in its program a rank made the call it is in: "train.py:91", or nothing.
  std::function<std::string(std::uint32_t)> place;
  // Whether nothing in the program could act but the one thread that waits.
  std::function<bool()> alone;
};

// For its scope nobody hears what this thread throws: it is kept for who may come to wait for it.
class Unheard {
 public:
  Unheard() { is_thread_ = true; }
  ~Unheard() { is_thread_ = false; }
  Unheard(const Unheard&) = delete;
  Unheard& operator=(const Unheard&) = delete;
  static bool is_thread() { return is_thread_; }

 private:
  inline static thread_local bool is_thread_ = false;
};

class Waiter {
 public:
  struct Peer {
    std::string host;
    std::uint32_t pid;
    int pidfd;  // -1 if there is none to watch: the rank is a thread of this process
  };

  // `owned` pidfds are closed with the waiter.
  Waiter(const Region& region, std::uint32_t rank, const std::vector<Peer>& peers, bool crowded);

  std::uint32_t rank() const { return rank_; }
  std::uint32_t pid_of(std::uint32_t peer) const { return pids_[peer]; }
  // Ends the waits of other threads; they throw `misuse`.
  void stop() { stopped_.store(true, std::memory_order_relaxed); }
  // The ranks of other hosts are reached by it; it must outlive this.
  void set_carrier(Carrier* carrier) { carrier_ = carrier; }
  bool is_remote(std::uint32_t peer) const {
    return carrier_ != nullptr && carrier_->is_remote(peer);
  }
  Carrier* carrier() const { return carrier_; }
  // Moves on what goes to other hosts and comes from there; false: nothing does.
  bool carry() const { return carrier_ != nullptr && carrier_->progress(); }
  void set_interrupt(std::function<void()> check) { interrupt_ = std::move(check); }
  // From so many seconds on, and after twice as many each time, a wait is told of; 0: never.
  void set_describe(double seconds, Describe describe) {
    silence_ = seconds;
    describe_ = std::move(describe);
  }

  // Runs pending signal handlers; throws what they raise.
  void look_at_signals() const {
    if (interrupt_) interrupt_();
  }
  const Patience& patience() const { return eager_; }

  // Starts the clock of one call.
  void begin(double timeout_seconds, bool background, OnceSlow once_slow);

  // Returns once `counter` has come to `wanted`. `peer` is who moves it, `what` what it is, for
  // the text of errors: "message from" or "acknowledgement of".
  void await(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted, std::uint32_t peer,
             const char* what) {
    for (std::uint32_t spin = 0; spin <= patience_.spins; ++spin) {
      // Acquire: what the peer wrote before it moved the counter is ours to read.
      if (reached(counter.load(std::memory_order_acquire), wanted)) return;
      pause_briefly();
    }
    await_slowly(counter, wanted, peer, what);
  }

  // After counters of ours, on which peers may sleep, were moved: first the fence, once, then
  // wake() for each. A peer announces its sleep, then looks at the counter; we move the counter,
  // then look for sleepers. With full fences between, one of us sees the other; where every rank
  // fences for all when it sleeps, the compiler alone must keep the order here.
  void fence_before_wake() const {
    if (all_expedited_.load(std::memory_order_relaxed)) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    } else {
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
  }
  void wake(const std::atomic<std::uint32_t>& counter, std::uint32_t peer) const {
    if (region_.standing(peer).sleepers.load(std::memory_order_relaxed) != 0) {
      wake_slowly(counter, peer);
    }
  }

  // Throws if another rank has reported trouble.
  void look_at_trouble() const {
    if (region_.trouble().state.load(std::memory_order_acquire) == TroubleBoard::published) {
      throw_trouble();
    }
  }
  // ... or is about to: waits for what it says.
  void look_at_any_trouble() const;
  // ... or if the process or communicator of one of these has ended.
  void look_at(const std::vector<std::uint32_t>& peers) const;
  // Tells every rank, unless one was faster, and throws.
  [[noreturn]] void fail(FailureKind kind, const std::string& text) const;
  // What a rank has reported, if any has: for a thread that nobody hears.
  std::optional<Failure> trouble() const;
  // Whether this rank's program has heard of what was reported. Relaxed: a close() that comes later
  // is ordered by the program, and one at the same time may say it once more.
  bool knows_of_trouble() const { return knows_of_trouble_.load(std::memory_order_relaxed); }
  void tell_of_trouble() const {
    if (!Unheard::is_thread()) knows_of_trouble_.store(true, std::memory_order_relaxed);
  }
  // Only tells; false if there is trouble already.
  bool report(FailureKind kind, const std::string& text) const;
  // Looks at trouble, signals and the deadline of a wait on `peer`; throws if one ends it.
  void look(std::uint32_t peer, const char* what);
  // Tells of a wait that has lasted `waited` seconds, if it is time and no other rank just has.
  // `next` is when: in seconds, 0 at its begin.
  void speak(double waited, double& next, const std::string& text,
             const std::vector<Sighting>& sightings) const;
  bool is_time_to_speak(double waited, double next) const {
    return silence_ > 0 && waited >= std::max(next, silence_);
  }
  // `text` and what the ranks do, for an error.
  std::string with_sightings(const std::string& text, const std::vector<Sighting>& sightings) const;
  // Whether nothing in this rank's program could act but the thread that waits.
  bool is_alone() const { return describe_.alone && describe_.alone(); }
  // Whether this rank's wait, in a call or for a message, may be part of a circle; see Circle.
  bool is_circle_possible(bool in_message) const {
    // What ranks of other hosts show may be old, and messages between hosts are seen by neither.
    return carrier_ == nullptr && Circle::is_possible(region_, rank_, in_message, sees_ended());
  }
  // What that circle means, once it stands: asked again and again, with the same `circle`.
  std::optional<Failure> failure_of(Circle& circle, bool in_message) const;
  // What all ranks do that matter to a wait on `whom`, as Waits has it.
  std::vector<Sighting> sightings(std::uint32_t whom) const;
  // Sleeps until `counter` may have moved, at most so long; where there are other hosts, moves on
  // what goes there and comes from there.
  void sleep(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
             std::chrono::nanoseconds longest) const;
  // Whether the peer's process, or its communicator, is gone.
  bool has_ended(std::uint32_t peer) const;
  // Whether it will not come to a meeting of those that are left: as has_ended, but for one that
  // has closed its communicator because it is in such a meeting's already.
  bool has_gone(std::uint32_t peer) const;
  bool has_ended_process(std::uint32_t peer) const;
  // Throws if any rank ended before it completed the call this rank is in.
  void look_for_lost() const;
  // Throws if a rank that is in the call of the same number is in another call.
  void look_for_mismatch() const;
  [[noreturn]] void fail_lost(std::uint32_t peer, const char* what) const;
  std::string name_of(std::uint32_t peer) const;
  // How a peer that has ended did: it closed its communicator, or its process is gone.
  std::string ended_text(std::uint32_t peer) const;
  // For the text of a mismatch: where symmetric arrays lie, if not at one place.
  std::string where_arrays_differ(std::uint32_t peer) const;
  std::string call_of(std::uint32_t rank) const;
  // ... and where its program made it, if it is in call `number` still; takes its time.
  std::string placed_call_of(std::uint32_t rank, std::uint64_t number) const;

 private:
  Circle::HasEnded sees_ended() const {
    return [this](std::uint32_t peer) { return has_ended(peer); };
  }
  bool look_for_expedited() const;
  void doze(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
            std::chrono::nanoseconds longest) const;
  void await_slowly(const std::atomic<std::uint32_t>& counter, std::uint32_t wanted,
                    std::uint32_t peer, const char* what);
  void wake_slowly(const std::atomic<std::uint32_t>& counter, std::uint32_t peer) const;
  [[noreturn]] void throw_trouble() const;
  // The ranks at which chains of waits end that begin with a wait on `whom`.
  std::vector<bool> holding_up(std::uint32_t whom) const;
  std::string doing(std::uint32_t rank) const;

  Region region_;
  std::uint32_t rank_;
  std::vector<std::string> hosts_;
  std::vector<std::uint32_t> pids_;
  std::vector<FileDescriptor> pidfds_;
  Carrier* carrier_ = nullptr;
  Patience eager_;
  Patience patience_{};
  OnceSlow once_slow_{};
  std::atomic<bool> all_expedited_{false};
  bool expedited_;
  std::int64_t started_ns_ = 0;
  double timeout_ = 0;
  double next_speech_ = 0;
  Circle circle_;
  std::function<void()> interrupt_;
  double silence_ = 0;
  Describe describe_;
  std::atomic<bool> stopped_{false};
  mutable std::atomic<bool> knows_of_trouble_{false};
};

}  // namespace transports
