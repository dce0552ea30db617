// Runs calls over shared memory: one loop over the instructions of a plan.
//
// An engine belongs to one rank and keeps no process-wide state, so ranks may be threads of one
// process. One call runs at a time; calls may come from different threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "program.hpp"
#include "region.hpp"
#include "symmetric.hpp"
#include "waiting.hpp"

namespace transports {

// What is folded before it is written past the caches; a multiple of every element's size.
inline constexpr std::size_t kHeldBytes = 8 * 1024;

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

class Engine {
 public:
  Engine(const Region& region, std::uint32_t rank, const std::vector<Waiter::Peer>& peers,
         bool crowded);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Runs `call` on this rank. `input` and `output` may be the very same memory, or must not
  // overlap. Throws Failure; afterwards the engine is broken and every call throws the same.
  void execute(const Call& call, const std::byte* input, std::byte* output, double timeout_seconds,
               bool background, OnceSlow once_slow = {});

  // Whether `call` is what comes next, where another rank decides that: waits for the first message
  // that it would take, looks at its fingerprint and leaves it there. Throws as `execute`.
  bool next_is(const Call& call, double timeout_seconds, OnceSlow once_slow);

  // Tells all ranks that this one gives up; their waits throw `aborted` with the text.
  void abort(const std::string& text);
  // Throws `mismatch` here and on every rank.
  [[noreturn]] void mismatch(const std::string& text);
  // Local: never waits. Calls after it throw `misuse`.
  void close();
  // In a child of fork: this copy is not the rank. It never touches the region again.
  void forsake() { forsaken_.store(true, std::memory_order_relaxed); }
  bool is_closed() const { return closed_.load(std::memory_order_relaxed); }
  bool is_broken() const { return broken_.load(std::memory_order_relaxed); }
  std::uint64_t calls() const { return number_; }
  Waiter& waiter() { return waiter_; }
  const Region& region() const { return region_; }
  std::uint32_t rank() const { return waiter_.rank(); }
  SymmetricMemory& symmetric() { return symmetric_; }

 private:
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
    std::uint32_t sent = 0;            // messages posted to it
    std::uint32_t received = 0;        // messages of it released
    std::uint32_t known_released = 0;  // of ours, when we last looked
  };

  static std::uint64_t stamp_of(const Call& call, std::uint64_t number);
  static std::uint64_t fingerprint_of(std::uint64_t stamp, const Call::Step& step);
  void refuse_in_child() const;
  void check_usable() const;
  // Shows the others which call this rank is in.
  void enter(const Call& call, std::uint64_t number, std::uint64_t stamp);
  // Runs `work`; what it throws breaks the engine, and the others hear of it.
  template <class Work>
  void or_tell_others(const Work& work);
  void run(const Call& call, const std::byte* input, std::byte* output);
  void step(const Call& call, const Call::Step& step, std::uint64_t turn, const std::byte* input,
            std::byte* output);
  // The work of a one-sided step: folds or copies what it peeks at, keeps and pokes the value.
  void reach(const Call& call, const Call::Step& step, const std::byte* input, std::byte* output);
  // `operands_` folded, or the one copied, to `results_`.
  void fold(const Call& call, std::size_t operands, std::size_t results, std::uint64_t length,
            bool past_caches);
  // Finds the arrays of a one-sided call at every peer; makes where they lie part of the call. Of
  // other calls notes that where they lie is of no concern.
  void locate(const Call& call, const std::byte* input, const std::byte* output);
  // Folds `operands_` into `out`, past the caches, and into `also`.
  void reduce_past_caches(const Call& call, std::byte* out, std::byte* also, std::size_t operands,
                          std::uint64_t length);
  Slot& next_slot(std::uint64_t bytes);
  bool is_released(const Message& message);
  std::byte* take_slot(const std::uint32_t* targets, std::uint32_t count, std::uint64_t bytes);
  const std::byte* take(const Call& call, std::uint32_t peer, std::uint64_t bytes,
                        std::uint64_t fingerprint);
  void release(std::uint32_t peer);
  void post(const std::uint32_t* targets, std::uint32_t count, const std::byte* payload,
            std::uint64_t bytes, std::uint64_t fingerprint);
  void wake(const std::uint32_t* sources, std::uint32_t source_count, const std::uint32_t* targets,
            std::uint32_t target_count);
  [[noreturn]] void fail_mismatch(const Call& call, std::uint32_t peer, const Descriptor& found,
                                  std::uint64_t bytes);

  Region region_;
  Waiter waiter_;
  std::vector<Peer> peers_;
  std::vector<Slot> slots_;
  std::uint64_t filled_ = 0;  // messages in slots so far
  std::uint32_t slot_ = 0;    // the one that was taken last
  alignas(kLine) std::byte inline_[kInlineBytes];
  SymmetricMemory symmetric_;
  std::vector<std::byte*> peer_inputs_;  // of the running one-sided call
  std::vector<std::byte*> peer_outputs_;
  std::vector<const std::byte*> operands_;
  std::vector<const std::byte*> block_operands_;
  std::vector<std::byte*> results_;
  std::unique_ptr<std::byte[]> scratch_;
  std::uint64_t scratch_bytes_ = 0;
  std::uint64_t number_ = 0;  // calls entered
  std::uint64_t stamp_ = 0;   // fingerprint of the running call, its number included
  bool located_ = false;      // whether the region shows where a call's arrays lie
  std::uint64_t shown_ = 0;   // fingerprint of the call text that stands in the region
  std::atomic<bool> busy_{false};
  std::atomic<bool> closed_{false};
  std::atomic<bool> forsaken_{false};
  std::atomic<bool> broken_{false};
};

}  // namespace transports
