// Point-to-point between the ranks of one communicator, on lanes of its own.
//
// A message that fits a slot travels whole, at once, and is put aside where it arrives if no
// receive wants it yet. A longer one is announced first:
//
//   sender                                receiver
//   announcement (number, tag, bytes) ->
//                                         a receive that wants it is, or comes to be, posted
//                                      <- clear (number)
//   fragment, fragment, ...           ->  copied to where the receive wants them
//
// Whatever arrives has a place to go, so a lane never clogs and no message delays another. A
// lane's announcements and whole messages keep the order in which they were posted, and are
// matched in that order; bytes of several long messages take turns.
//
// Everything moves in progress(), which never waits; it is called by who posts, waits or tests,
// and by a thread while operations are pending.
//
// What goes wrong is reported to all ranks, and breaks the communicator: pending operations fail,
// nothing is written to their memory any more, and posting throws.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "lane.hpp"
#include "matching.hpp"
#include "operation.hpp"
#include "progress_thread.hpp"
#include "region.hpp"
#include "waiting.hpp"

namespace transports {

// Any thread may call anything. At most one for a rank of a region, ever: lanes start at zero.
class PointToPoint {
 public:
  using Handle = std::shared_ptr<Operation>;
  // Whether the caller does something else before it waits for the operation.
  enum class Caller { waits_at_once, waits_later };

  // The waiter is used by its const functions only, and must outlive this, as must the region.
  PointToPoint(const Region& region, const Waiter& waiter);
  ~PointToPoint() { close(); }
  PointToPoint(const PointToPoint&) = delete;
  PointToPoint& operator=(const PointToPoint&) = delete;

  // The memory must stay until the operation is done. `source` and `tag` of a receive may be kAny.
  // Throws std::invalid_argument of ranks and tags that cannot be, and Failure.
  Handle post_send(const std::byte* from, std::uint64_t bytes, std::int32_t dest, std::int32_t tag,
                   What what, Caller caller);
  Handle post_receive(std::byte* to, std::uint64_t bytes, std::int32_t source, std::int32_t tag,
                      What what, Caller caller);
  // Throws Failure, as the operation fails; or what a signal handler raises, then the operation
  // stays pending.
  // With `fatal` the deadline breaks the communicator, as the contract says; without, the wait
  // throws `timeout` and the operation goes on.
  void wait(Operation& operation, double timeout_seconds, bool fatal);
  // Takes back a receive that nobody will look at, as an exception has left the call that was to
  // wait for it; once. It takes no message: one that has come is there for the next receive. Of a
  // long one that is on its way the begin is lost; that breaks the communicator.
  void withdraw(const Handle& receive);
  // Whether the operation is done; throws Failure if it failed.
  bool test(Operation& operation);
  // Local: waits for no peer. Pending operations fail.
  void close();

 private:
  // What goes to one peer.
  struct Outbox {
    OutgoingLane lane;
    std::deque<std::uint32_t> clears;
    std::deque<Handle> heads;    // whole messages and announcements, in the order of posting
    std::deque<Handle> streams;  // long messages that were cleared; they take turns
    std::unordered_map<std::uint32_t, Handle> announced;
    std::uint32_t messages = 0;
    bool streams_turn = false;
  };
  // What comes from one peer.
  struct Inbox {
    IncomingLane lane;
    std::unordered_map<std::uint32_t, Handle> streams;
  };
  // Counts the threads in a scope. Relaxed: a hint to others, nothing is ordered by it.
  class Counted {
   public:
    explicit Counted(std::atomic<std::uint32_t>& count) : count_(count) {
      count_.fetch_add(1, std::memory_order_relaxed);
    }
    ~Counted() { count_.fetch_sub(1, std::memory_order_relaxed); }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;

   private:
    std::atomic<std::uint32_t>& count_;
  };
  // The lock. A thread that polls takes and drops it all the time, so one that has something to
  // do says that it comes, and the poller stands back.
  class Hold {
   public:
    explicit Hold(PointToPoint& owner) : lock_(owner.mutex_, std::try_to_lock) {
      if (lock_.owns_lock()) return;
      const Counted coming(owner.callers_);
      lock_.lock();
    }

   private:
    std::unique_lock<std::mutex> lock_;
  };

  std::uint32_t rank() const { return waiter_.rank(); }
  std::uint32_t ranks() const { return region_.geometry().ranks; }
  void check_usable() const;
  void check_owner(const Operation& operation) const;
  // The operation is done; throws if it failed, and then this rank knows why.
  void check(const Operation& operation) const;

  // With the lock held: what moves messages. True: something moved.
  bool progress();
  bool drain(std::uint32_t peer);
  void act_on(const Packet& packet, std::uint32_t source);
  void arrive(const Packet& packet, std::uint32_t source);
  void take_fragment(const Packet& packet, std::uint32_t source);
  bool push(std::uint32_t peer);
  // Shows whether messages are on their way that come to their end whatever the programs do.
  void show_moving();
  // Whether nobody can end the wait for `operation`; breaks then.
  void look_for_circle(Operation& operation, Circle& circle, ShownWait& shown);
  void push_head(Outbox& outbox);
  void push_fragment(Outbox& outbox);
  void begin(const Handle& operation, Caller caller);
  void send_to_self(Operation& send);
  // Gives a message that lies whole at `from` to the receive that wants it, or keeps a copy for the
  // next: behind the others that came, or before them. False if the receive expects another.
  enum class Kept { last, first };
  bool deliver(const Packet& packet, std::uint32_t source, const std::byte* from, Kept kept);
  // Checks that the message is what the receive expects, and notes where it comes from.
  bool accept(const Handle& receive, const Packet& packet, std::uint32_t source);
  void await_fragments(const Handle& receive, const Packet& packet, std::uint32_t source);

  void finish(Operation& operation);
  void fail(Operation& operation, const Failure& failure);
  // Reports to all ranks, and breaks; what another rank reported first counts.
  void give_up(FailureKind kind, const std::string& text);
  void break_off(const Failure& failure);

  // Without it: what waiting does.
  bool try_progress();
  void look(Operation& operation, double waited, double timeout, bool fatal, double& next_speech);
  // Shows the others what this rank waits for.
  void show(Operation& operation, std::optional<ShownWait>& shown);
  void refuse_in_child() const;
  void sleep(Operation& operation, std::uint32_t naps);
  bool has_ended(std::int32_t peer) const;
  std::string lost_text(const Operation& operation) const;
  std::string waiting_text(const Operation& operation, double waited) const;
  ProgressThread::Found step_in_background();

  Region region_;
  const Waiter& waiter_;
  const pid_t process_;
  std::mutex mutex_;
  std::atomic<std::uint32_t> callers_{0};  // threads that want the lock, for more than progress
  std::atomic<std::uint32_t> waiting_{0};  // threads in wait(): they see to progress
  std::atomic<std::uint32_t> pending_{0};
  std::atomic<std::int64_t> tested_ns_{0};
  std::vector<Outbox> outboxes_;
  std::vector<Inbox> inboxes_;
  std::vector<bool> have_left_;  // peers that were seen to have: what is for them goes nowhere
  Matching matching_;
  std::optional<Failure> broken_;
  bool is_moving_ = false;  // what the region shows
  bool closed_ = false;
  ProgressThread thread_;
};

}  // namespace transports
