// Runs calls over shared memory: one loop over the instructions of a plan.
//
// An engine belongs to one rank and keeps no process-wide state, so ranks may be threads of one
// process. One call runs at a time; calls may come from different threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "lending.hpp"
#include "program.hpp"
#include "region.hpp"
#include "remote_copy.hpp"
#include "symmetric.hpp"
#include "waiting.hpp"

namespace transports {

// Where a chunk's own operand is, and where its value is kept; nullptr for nowhere.
inline const std::byte* own_operand(const Call::Item& item, std::uint64_t segment_at,
                                    const std::byte* input, const std::byte* output,
                                    const std::byte* scratch) {
  switch (item.read) {
    case Space::input:
      return input + item.read_at + segment_at;
    case Space::output:
      return output + item.read_at + segment_at;
    case Space::scratch:
      return scratch + item.read_at;
    case Space::nowhere:
      break;
  }
  return nullptr;
}

inline std::byte* kept_at(const Call::Item& item, std::uint64_t segment_at, std::byte* output,
                          std::byte* scratch) {
  if (item.write == Space::output) return output + item.write_at + segment_at;
  if (item.write == Space::scratch) return scratch + item.write_at;
  return nullptr;
}

// Whether results take the place of what was read: then they lie in the caches as inputs did. A
// broadcast's receivers read nothing.
inline bool in_place(const Call& call, const std::byte* input, const std::byte* output) {
  return input == output && call.input_bytes() != 0;
}

// Where this was measured a line that a core of the same last-level cache has written comes in 13
// to 36 ns, one of a core with another in 60 to 140.
inline constexpr std::uint32_t kFarNs = 60;

// Where the arrays of a rank are, and whether the kernel may copy from and to all of them, as far
// as it knows.
struct ArrayPlaces {
  std::uint64_t input;
  std::uint64_t output;
  std::uint64_t may;
  std::uint64_t seal;
};
static_assert(sizeof(ArrayPlaces) <= kInlineBytes);

// Tells the messages that say so from those of steps.
inline constexpr std::uint64_t kPlaceMark = 0x94d049bb133111ebu;

class Engine {
 public:
  Engine(const Region& region, std::uint32_t rank, const std::vector<Waiter::Peer>& peers,
         bool crowded);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Runs `call` on this rank. `input` and `output` may be the very same memory, or must not
  // overlap. Throws Failure; afterwards the engine is broken and every call throws the same. Then
  // `stay_in_use` tells whether a rank that was stopped in the midst of a copy may still write to
  // the output, or MPI has not done with either: they are to be kept for ever.
  void execute(const Call& call, const std::byte* input, std::byte* output, double timeout_seconds,
               bool background, OnceSlow once_slow = {}, bool* stay_in_use = nullptr);

  // Whether `call` is what comes next, where another rank decides that: waits for the first message
  // that it would take, looks at its fingerprint and leaves it there. Throws as `execute`.
  bool next_is(const Call& call, double timeout_seconds, OnceSlow once_slow);

  // Tells all ranks that this one gives up; their waits throw `aborted` with the text.
  void abort(const std::string& text);
  // Throws `mismatch`, or `peer_lost`, here and on every rank: what was found without a call.
  [[noreturn]] void mismatch(const std::string& text) { fail(FailureKind::mismatch, text); }
  [[noreturn]] void peer_lost(const std::string& text) { fail(FailureKind::peer_lost, text); }
  // Throws `mismatch` if a peer has sent what no call of this rank has taken, or a mismatch has
  // been reported that no call of this rank has thrown: before close(), of a rank that wants to
  // know. Nothing while a call is under way.
  void check_complete();
  // Local: never waits. Calls after it throw `misuse`.
  void close();
  // This rank is in a communicator of those that were left; it closes, but has not gone.
  void move() { has_moved_.store(true, std::memory_order_relaxed); }
  // What others are to know of asynchronous calls: so many more have not ended, so many more
  // threads of the program wait for one; 0: a thread that does has looked whether it is over.
  void show_queued(int more) const {
    if (forsaken_.load(std::memory_order_relaxed)) return;
    // Release: once none is left, whoever sees it sees that the engine is in none.
    region_.standing(rank()).queued.fetch_add(more, std::memory_order_release);
  }
  void show_in_queue(int more) const {
    if (forsaken_.load(std::memory_order_relaxed)) return;
    auto& standing = region_.standing(rank());
    if (more == 0) {
      standing.queue_looks.fetch_add(1, std::memory_order_relaxed);
    } else {
      standing.in_queue.fetch_add(more, std::memory_order_relaxed);
      standing.queue_changes.fetch_add(1, std::memory_order_relaxed);
    }
  }
  // In a child of fork: this copy is not the rank. It never touches the region again.
  void forsake() { forsaken_.store(true, std::memory_order_relaxed); }
  bool is_forsaken() const { return forsaken_.load(std::memory_order_relaxed); }
  // Beyond so many nanoseconds to get a line of this rank, long messages to a peer are stored past
  // the caches: they are there sooner by way of memory.
  std::uint32_t far_ns() const { return far_ns_; }
  void set_far_ns(std::uint32_t nanoseconds) { far_ns_ = nanoseconds; }
  // When long messages stay where they are for others to have them copied.
  Lend lend() const { return lend_; }
  void set_lend(Lend lend);
  // Messages of this rank that were, or were sent to other hosts from where they are.
  std::uint64_t lent() const { return lent_count_; }
  // Calls in which ranks had the kernel copy from and to each other's arrays.
  std::uint64_t reaching_calls() const { return reached_count_; }
  // Of a call that may run by them, whether they were found to be quicker; nothing, if another is
  // just running.
  Found found(const Call& call);
  // What the ranks of a communicator alone know: where their arrays are they say under this seal,
  // so that nobody has anything copied to where something else has written an address.
  void set_seal(std::uint64_t key) { seal_ = key; }
  // In the middle of the next call sends this process a signal, or, if that is 0, ends it with a
  // code: for faults on purpose.
  void signal_in_middle(int number, int code) { fault_ = {true, number, code}; }
  // Not any more; false: it has happened already.
  bool take_back_signal();
  bool is_closed() const { return closed_.load(std::memory_order_relaxed); }
  bool is_broken() const { return broken_.load(std::memory_order_relaxed); }
  std::uint64_t calls() const { return number_; }
  Waiter& waiter() { return waiter_; }
  const Region& region() const { return region_; }
  std::uint32_t rank() const { return waiter_.rank(); }
  SymmetricMemory& symmetric() { return symmetric_; }

 private:
  // What arrays of a call that has failed may still be.
  enum class Used { not_, written, sent };
  struct Message {
    std::uint32_t peer;
    std::uint32_t index;  // of the peer's messages from us
  };
  struct Slot {
    std::vector<Message> readers;  // who may still read it
    std::uint64_t filled = 0;      // when: the number of messages in slots until then
  };
  // What this rank knows of its channels with one peer.
  struct Peer {
    std::uint32_t reserved = 0;        // messages to it that have their room
    std::uint32_t sent = 0;            // ... and are posted
    std::uint32_t taken = 0;           // messages of it that were looked at
    std::uint32_t released = 0;        // ... and released
    std::uint32_t known_released = 0;  // of ours, when we last looked
    std::uint32_t unmeasured = 0;      // long messages of it since its distance was measured
    bool may_pull = false;             // whether what it lends may be copied
  };

  // A step in one pass, from when it has its slot and messages until its own is posted.
  struct Begun {
    const Call::Step* step;
    std::uint64_t bytes;  // of its message
    std::uint64_t fingerprint;
    std::byte* outgoing;    // where its message is written; nullptr: it sends none, or it stays
    const std::byte* lent;  // ... here
    bool is_carried;        // ... until the carrier has sent it, not until receivers have copied it
    SlotPlace place;
    const std::byte** operands;  // what it has taken, and at own_at room for the own operand
  };
  // The work of a step on one chunk: operands folded, or the one copied, to `out` and `also`.
  struct Strand {
    std::byte* out;  // nullptr: nowhere
    std::byte* also;
    const std::byte* const* operands;
    std::size_t count;
    std::uint64_t length;
    Stores stores;
  };

  struct Fault {
    bool is_due;
    int signal;
    int code;
  };

  static std::uint64_t stamp_of(const Call& call, std::uint64_t number);
  static std::uint64_t fingerprint_of(std::uint64_t stamp, const Call::Step& step) {
    // The length over all passes is part of it: both ends know it, and must agree from pass 0 on.
    return stamp ^ (step.bytes * 0xff51afd7ed558ccdu);
  }
  [[noreturn]] void fail(FailureKind kind, const std::string& text);
  void refuse_in_child() const;
  void check_usable() const;
  // Shows the others which call this rank is in.
  void enter(const Call& call, std::uint64_t number, std::uint64_t stamp);
  // Runs `work`; what it throws breaks the engine, and the others hear of it.
  template <class Work>
  void or_tell_others(const Work& work);
  void run_whole(const Call& call, const std::byte* input, std::byte* output, bool background);
  void run(const Call& call, const std::byte* input, std::byte* output);
  // ... with copies of the kernel's where that is quicker.
  void run_long(const Call& call, const std::byte* input, std::byte* output);
  // ... until all that was lent has been copied.
  void run_lending(const Call& call, const std::byte* input, std::byte* output);
  // Tells all ranks where the arrays of this one are, and hears it of them, or of the root alone;
  // false if the kernel cannot copy from and to all of them.
  bool exchange_places(const Call& call, const std::byte* input, std::byte* output);
  bool may_be_reached(const Call& call, const std::byte* input, const std::byte* output);
  // From here on others may have copied from and to them.
  ArrayPlaces open_arrays(const std::byte* input, const std::byte* output, bool may);
  void tell_others(const ArrayPlaces& places);
  void post_place(std::uint32_t peer, const ArrayPlaces& places);
  // Whether the kernel can copy from and to those of that rank.
  bool hear_place(std::uint32_t peer);
  // Not any more: nobody is at it.
  void close_at_once();
  // A one-sided call on arrays of which the kernel copies, from its step `first` on.
  void run_reaching(const Call& call, std::size_t first, const std::byte* input, std::byte* output);
  // The work of `moving_`, a piece of each in turn: what a step does to an element needs only what
  // those before it did to the same element of a chunk.
  void move_together(const Call& call, const std::byte* input, std::byte* output);
  void reach_piece(const Call& call, const Call::Step& step, const Call::Item& item,
                   std::uint64_t at, std::uint64_t bytes, const std::byte* input,
                   std::byte* output);
  // Where an array of a peer begins, in its own memory or as this process has it mapped.
  std::byte* at_peer(const Reach& reach) const {
    return (reach.space == Space::input ? peer_inputs_ : peer_outputs_)[reach.peer];
  }
  // Room for a piece, which begins at a place of a cache line like `like`.
  std::byte* room_like(std::uint32_t number, const std::byte* like);
  void copy_from(const Reach& from, std::uint64_t offset, std::byte* into, std::uint64_t bytes);
  void copy_to(const Reach& to, std::uint64_t offset, const std::byte* from, std::uint64_t bytes);
  // Throws unless the kernel has copied from, or to, the memory of a peer that still is in the call
  // then.
  void check_copied(std::uint32_t peer, Copied copied);
  // From here on nobody has anything copied to arrays of this rank, whose call has failed. False:
  // somebody was stopped in the midst of it.
  bool close_arrays();
  void meet_fault();
  void step(const Call& call, const Call::Step& step, std::uint64_t turn, const std::byte* input,
            std::byte* output);
  // All steps of a wave together, a little of each in turn; false, and nothing was done, if they
  // are too few or too short.
  bool weave(const Call& call, std::uint64_t wave, const std::byte* input, std::byte* output);
  static bool is_due(const Call& call, const Call::Step& step, std::uint64_t wave);
  // The last step of avg, of what pass `turn` carries.
  static void divide(const Call& call, std::uint64_t turn, std::byte* output);
  // Bytes of a step's message, and of a chunk, that pass `turn` carries.
  static std::uint64_t bytes_of(const Call& call, const Call::Step& step, std::uint64_t turn);
  static std::uint64_t extent(const Call& call, const Call::Item& item, std::uint64_t turn);
  Begun begin(const Call& call, const Call::Step& step, std::uint64_t turn, std::uint64_t bytes,
              const std::byte** operands, const std::byte* input, std::byte* output);
  // `at`: where in its message the chunk begins.
  Strand strand_of(const Call& call, const Begun& begun, const Call::Item& item, std::uint64_t turn,
                   std::uint64_t at, const std::byte* input, std::byte* output);
  // Of a strand `bytes` from `at` on; `follows` more come behind them.
  void work(const Call& call, const Strand& strand, std::uint64_t at, std::uint64_t bytes,
            std::uint64_t follows);
  void end(const Call& call, const Begun& begun);
  // The work of a one-sided step: folds or copies what it peeks at, keeps and pokes the value.
  void reach(const Call& call, const Call::Step& step, const std::byte* input, std::byte* output);
  // `operands_` folded, or the one copied, to `results_`.
  void fold(const Call& call, std::size_t operands, std::size_t results, std::uint64_t length,
            bool past_caches);
  // Finds the arrays of a one-sided call at every peer; makes where they lie part of the call. Of
  // other calls notes that where they lie is of no concern.
  void locate(const Call& call, const std::byte* input, const std::byte* output);
  Slot& next_slot(std::uint64_t bytes);
  bool is_released(const Message& message);
  // How many messages of this rank a peer has released: no more than were posted to it.
  std::uint32_t released_by(std::uint32_t peer);
  // Whether everybody whom a step sends to can have what lies at `from` copied.
  bool may_lend(const Call& call, const Call::Step& step, bool in_place, const std::byte* from,
                std::uint64_t bytes);
  // Whether a message may be sent to other hosts from where it is: all of its receivers are there.
  bool may_stay(const Call& call, const Call::Step& step, bool in_place, std::uint64_t bytes) const;
  // Until MPI has what was.
  void await_carried();
  bool has_gone(const Message& message) const;
  // Of a call that has failed: what it lent may still be copied, by ranks that then see that it
  // has; nobody writes to its arrays any more, and MPI reads none, unless that takes too long.
  Used end_copies();
  // Room for a message's descriptor at every peer.
  void take_room(const std::uint32_t* targets, std::uint32_t count);
  // Room for a message of `bytes`: its slot, or where short ones are made.
  std::byte* take_slot(const std::uint32_t* targets, std::uint32_t count, std::uint64_t bytes,
                       std::uint32_t shift);
  // Where the message of a step's source is.
  const std::byte* take(const Call& call, const Begun& begun, std::uint32_t source,
                        std::uint64_t turn, std::byte* output);
  // What is lent, copied: to where the step keeps it, if that is all it does with it.
  const std::byte* pull_from(std::uint32_t peer, const Descriptor& descriptor, const Call& call,
                             const Begun& begun, std::uint64_t turn, std::byte* output);
  void release(std::uint32_t peer);
  // A message of at most kInlineBytes that belongs to no step; and the release of one.
  void post_inline(std::uint32_t peer, const void* words, std::size_t bytes,
                   std::uint64_t fingerprint);
  void release_alone(std::uint32_t peer);
  // Whether one of these is so far that a long message is better stored past the caches.
  bool is_any_far(const std::uint32_t* targets, std::uint32_t count);
  // Now and then: how long it takes to get what the peer has just written.
  void measure_distance(std::uint32_t peer, const std::byte* payload);
  void post(const std::uint32_t* targets, std::uint32_t count, const Begun& begun);
  void wake(const std::uint32_t* sources, std::uint32_t source_count, const std::uint32_t* targets,
            std::uint32_t target_count);
  // A message of a call that this rank has completed without taking it: the peer made another.
  void look_for_untaken(std::uint32_t peer);
  [[noreturn]] void fail_mismatch(std::uint32_t peer, const Descriptor& found, std::uint64_t bytes);

  Region region_;
  Waiter waiter_;
  std::vector<Peer> peers_;
  std::vector<Slot> slots_;
  std::uint64_t filled_ = 0;  // messages in slots so far
  std::uint32_t slot_ = 0;    // the one that was taken last
  std::uint32_t far_messages_ = 0;
  std::uint32_t far_ns_ = kFarNs;
  alignas(kLine) std::byte inline_[kInlineBytes];
  SymmetricMemory symmetric_;
  std::vector<std::byte*> peer_inputs_;  // of the running one-sided call
  std::vector<std::byte*> peer_outputs_;
  std::vector<const std::byte*> operands_;
  std::vector<const std::byte*> block_operands_;
  std::vector<std::byte*> results_;
  Lend lend_ = Lend::when_quicker;
  std::uint64_t least_lent_ = kLentBytes;
  std::uint64_t lent_count_ = 0;
  LendingTrials lending_trials_;
  LendingTrials reaching_trials_;
  CopiedMemory copied_;
  bool lends_ = false;    // in the running call
  bool is_open_ = false;  // its arrays, to others
  bool may_be_used_ = false;
  bool may_reach_ = true;  // all ranks, as far as this one knows
  std::uint64_t seal_ = 0;
  std::uint64_t reached_count_ = 0;
  std::vector<Message> lent_;     // in the running call
  std::vector<Message> carried_;  // ... from where they are
  std::uint64_t least_carried_ = kCarriedBytes;
  // For each peer and step of a wave, once it has lent.
  std::vector<std::unique_ptr<std::byte[]>> pulled_;
  std::vector<std::unique_ptr<std::byte[]>> rooms_;  // for pieces of a reaching call
  std::vector<const Call::Step*> moving_;            // of it, what is done together
  std::unique_ptr<std::byte[]> scratch_;
  std::uint64_t scratch_bytes_ = 0;
  std::uint64_t number_ = 0;  // calls entered
  std::uint64_t stamp_ = 0;   // fingerprint of the running call, its number included
  bool located_ = false;      // whether the region shows where a call's arrays lie
  Fault fault_{};
  std::uint64_t steps_to_fault_ = 0;  // of the running call; 0: it has none
  bool is_background_ = false;        // what the region shows of it
  std::uint64_t shown_ = 0;           // fingerprint of the call text that stands in the region
  std::atomic<bool> busy_{false};
  std::atomic<bool> closed_{false};
  std::atomic<bool> has_moved_{false};
  std::atomic<bool> forsaken_{false};
  std::atomic<bool> broken_{false};
};

}  // namespace transports
