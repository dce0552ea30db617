// A plan as the engine runs it, and a call: a plan bound to chunk lengths, element type and
// operation. Both are made once and cached by Python; running a call allocates nothing,
// but room that an engine keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels.hpp"

namespace transports {

enum class Space : std::uint8_t { nowhere = 0, input, output, scratch };

struct Place {
  Space space;
  std::uint32_t chunk;
};

// Memory of a peer.
struct Reach {
  std::uint32_t peer;
  Space space;
};

// One action; see transports/plan.py, whose Instruction this is.
struct Instruction {
  std::vector<std::uint32_t> chunks;
  std::vector<std::uint32_t> sources;
  std::vector<std::uint32_t> targets;
  std::vector<Place> reads;
  std::vector<Place> writes;
  std::uint32_t own_at = 0;
  std::vector<Reach> peeks;
  std::vector<Reach> pokes;
};

struct Plan {
  std::uint32_t rank = 0;
  std::uint32_t size = 0;
  std::uint32_t chunk_count = 0;
  std::vector<std::uint32_t> inputs;
  std::vector<std::uint32_t> outputs;
  std::vector<std::uint32_t> scratch;
  std::uint32_t widest = 1;
  std::vector<Instruction> instructions;
  std::vector<std::vector<std::uint32_t>> peer_inputs;  // of a one-sided plan, for every rank
  std::vector<std::vector<std::uint32_t>> peer_outputs;
  std::vector<Space> remote;          // where anybody reaches into a peer
  std::vector<std::uint32_t> delays;  // of each instruction, in passes; none: they do not overlap
  std::uint32_t in_flight = 0;        // messages of a rank on their way when they do

  bool is_one_sided() const { return !peer_inputs.empty(); }
  // Throws std::invalid_argument if a number in it is out of range, so that no engine needs to
  // look again.
  void check() const;
};

// At most so many steps of a wave are worked on together.
inline constexpr std::size_t kMostWoven = 8;

// What is reduced, and how.
struct Reduction {
  DType dtype;
  Op op;
  bool average;  // divide the sum by the number of ranks at the end
};

class Call {
 public:
  // `lengths` are in elements of `item_bytes`; `text` says what the call is, the same on every
  // rank; `in_flight` is how many messages a rank may have on their way; `cache_bytes` what
  // all ranks have of the last level of cache. Throws std::invalid_argument if lengths, plan and
  // slot do not fit together.
  Call(Plan plan, std::vector<std::uint64_t> lengths, std::size_t item_bytes,
       std::optional<Reduction> reduction, std::size_t slot_bytes, std::uint32_t in_flight,
       std::uint64_t cache_bytes, std::string text);

  // One chunk's part in an instruction, with offsets in bytes from the begin of its spaces.
  struct Item {
    std::uint64_t length;  // bytes of the chunk
    std::uint64_t read_at;
    std::uint64_t write_at;
    Space read;
    Space write;
    std::uint32_t
        reaches;  // one-sided: of its peeks, then its pokes, the offsets in the peers' spaces
  };
  struct Step {
    std::uint32_t items_begin, items_end;
    std::uint32_t sources_begin, sources_end;
    std::uint32_t targets_begin, targets_end;
    std::uint32_t peeks_begin, pokes_begin, reaches_end;
    std::uint32_t own_at;
    std::uint32_t delay;  // in wave w it is run for pass w - delay
    bool stays;           // its message may be taken from the array it is sent from
    bool lends;           // ... by its receivers, who are in the call anyway
    bool lends_kept;      // ... which is where it keeps it; else where the own operand is
    bool lends_apart;     // ... if input and output are not the same memory
    std::uint64_t bytes;  // of its message, all passes together
  };
  struct Output {
    std::uint64_t at;
    std::uint64_t length;
  };

  const std::vector<Step>& steps() const { return steps_; }
  const Item* items() const { return items_.data(); }
  const std::uint32_t* peers() const { return peers_.data(); }
  const Reach* reaches() const { return reaches_.data(); }
  const std::uint64_t* offsets() const { return offsets_.data(); }
  const std::vector<Output>& outputs() const { return outputs_; }
  // The peers of which no message comes.
  const std::vector<std::uint32_t>& silent_peers() const { return silent_peers_; }
  std::uint64_t passes() const { return passes_; }
  std::uint64_t segment() const { return segment_; }  // bytes of a chunk in one pass
  // The delay of the last step; no other's is greater.
  std::uint32_t longest_delay() const { return steps_.empty() ? 0 : steps_.back().delay; }
  // Messages of a rank that it may have on their way at once.
  std::uint32_t in_flight() const { return in_flight_; }
  // Bytes of the longest message that this rank sends or takes, all passes together.
  std::uint64_t longest_message() const { return longest_; }
  // Whether the steps of every wave are independent of each other, few, of one chunk each, and on
  // arrays that do not fit in the caches.
  bool weaves() const { return weaves_; }
  std::uint64_t input_bytes() const { return input_bytes_; }
  std::uint64_t output_bytes() const { return output_bytes_; }
  std::uint64_t scratch_bytes() const { return scratch_bytes_; }
  std::size_t item_bytes() const { return item_bytes_; }
  std::size_t slot_bytes() const { return slot_bytes_; }
  std::uint32_t size() const { return size_; }
  std::uint32_t rank() const { return rank_; }
  // Whether input and output may be the same memory: every chunk lies at the same place in both.
  bool in_place() const { return in_place_; }
  bool is_one_sided() const { return is_one_sided_; }
  // Whether it reaches into the peers' input or output, which then must be symmetric memory.
  bool reaches_inputs() const { return reaches_inputs_; }
  bool reaches_outputs() const { return reaches_outputs_; }
  // What may run instead, if the kernel copies from and to the arrays of all ranks, wherever they
  // lie: the same call as a one-sided plan has it; nullptr: nothing. Must outlive this, and be set
  // on every rank. Its first steps, which say that arrays may be used, are left out, as that is
  // what telling where they are does: between all ranks, by a plan that begins on each with telling
  // all the others and hearing of them all; or, if it is between a root and each of the others
  // alone, on the root with telling all, maybe after hearing of all, and accordingly on the others.
  const Call* reached() const { return reached_; }
  const std::optional<std::uint32_t>& reached_root() const { return reached_root_; }
  std::size_t reached_begin() const {
    return reached_begin_;
  }  // the first step that is not left out
  // Whether some rank may not hear of others in this call: then all meet while it is tried which
  // of the two is quicker, so that all find the same.
  bool meets_to_try() const { return meets_to_try_; }
  void set_reached(const Call& call, std::optional<std::uint32_t> root, bool meets_to_try);
  // The longest that any rank's input or output is.
  std::uint64_t widest_input() const { return widest_input_; }
  std::uint64_t widest_output() const { return widest_output_; }
  // Whether what goes to the output is better written past the caches: the arrays of all ranks do
  // not fit in them.
  bool streams() const { return streams_; }
  ReduceKernel reduce() const { return reduce_; }
  DivideKernel divide() const { return divide_; }
  std::uint64_t fingerprint() const { return fingerprint_; }
  const std::string& text() const { return text_; }

 private:
  // Whether two steps of one pass may be done in any order, or a little of each in turn.
  bool are_independent(const Step& one, const Step& other) const;
  // Of a one-sided plan: the step behind the meeting that it begins with; 0: it does not.
  std::size_t begin_among_all() const;
  std::size_t begin_around(std::uint32_t root) const;
  // Of each step, whether what it sends stays as it is in the input or output until the call ends.
  // A rank may have `in_flight` messages on their way; 0: not known.
  void find_lenders(std::uint32_t in_flight);

  std::vector<Step> steps_;
  std::vector<Item> items_;
  std::vector<std::uint32_t> peers_;
  std::vector<Output> outputs_;
  std::vector<std::uint32_t> silent_peers_;
  std::vector<Reach> reaches_;
  std::vector<std::uint64_t> offsets_;
  const Call* reached_ = nullptr;
  std::optional<std::uint32_t> reached_root_;
  std::size_t reached_begin_ = 0;
  bool meets_to_try_ = false;
  bool reaches_inputs_ = false;
  bool reaches_outputs_ = false;
  std::uint64_t widest_input_ = 0;
  std::uint64_t widest_output_ = 0;
  std::uint64_t passes_ = 1;
  std::uint32_t in_flight_ = 0;
  bool weaves_ = false;
  std::uint64_t longest_ = 0;
  std::uint64_t segment_ = 0;
  std::uint64_t input_bytes_ = 0;
  std::uint64_t output_bytes_ = 0;
  std::uint64_t scratch_bytes_ = 0;
  bool in_place_;
  bool is_one_sided_;
  bool streams_;
  std::size_t item_bytes_;
  std::size_t slot_bytes_;
  std::uint32_t size_;
  std::uint32_t rank_;
  ReduceKernel reduce_ = nullptr;
  DivideKernel divide_ = nullptr;
  std::uint64_t fingerprint_;
  std::string text_;
};

}  // namespace transports
