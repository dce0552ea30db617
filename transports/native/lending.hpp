// When the kernel copies between the arrays of ranks (process_vm_readv, process_vm_writev): one
// copy instead of two by way of a slot, but a dear one: on some machines twice as quick, on others
// half as quick, so that it is tried.
//
// A message that is lent stays in the sender's array, and the receiver has it copied from there.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "region.hpp"

namespace transports {

// From here on a message may be lent: a call of the kernel takes as long as copying a few KiB.
inline constexpr std::uint64_t kLentBytes = 32 * 1024;
// From here on it may be sent to another host from where it is. The call ends once MPI has it,
// which for shorter ones it has when they are copied.
inline constexpr std::uint64_t kCarriedBytes = 128 * 1024;

// When long messages are lent.
enum class Lend : std::uint32_t { never = 0, when_quicker, always };

// What is known of a call: whether copies of the kernel's are quicker than the way by slots.
enum class Found : std::uint32_t { nothing = 0, trying, slots, copies };

// Finds out for each call whether lending is quicker: by doing it so many times without, then so
// many times with, and by what took least, since nothing but the call itself makes it quick. What
// was found holds for some hundred runs. Ranks tell each other what they have found and take what
// is quicker for the slowest; since nobody is a run ahead of a rank it hears from, and where some
// hear of nobody all meet while they try, all know the same. Where a rank has found nothing, since
// it has no long message, or its result takes the place of its operand and theirs do not, nothing
// is lent.
class LendingTrials {
 public:
  // What is found is shown from trial `first` on.
  LendingTrials(const Region& region, std::uint32_t rank, std::size_t first)
      : region_(region), rank_(rank), first_(first) {}

  // Whether the next run of the call with this fingerprint is to lend. One that is long, on every
  // rank, is tried less often; one for which all meet has to be quicker by more.
  bool begin(std::uint64_t call, bool is_long, bool meets);
  // Whether the run that has begun is one of those that find it out.
  bool is_trying() const;
  // What has been found of the call with this fingerprint.
  Found found(std::uint64_t call) const;
  // In the run that has begun all have found that they cannot: not until it is tried anew.
  void refuse();
  // So long that run took.
  void end(std::uint64_t nanoseconds);

 private:
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  struct Entry {
    std::uint64_t call = 0;
    std::uint32_t runs = 0;   // begun
    std::uint32_t trial = 0;  // runs of each way to try
    bool lends = false;
    std::uint64_t last = 0;                              // run of all
    std::array<std::uint64_t, 2> least{kNever, kNever};  // without and with lending
  };

  // The place of a call; its own, or that of the call in its set that has not run for longest.
  std::size_t place_of(std::uint64_t call) const;
  bool is_lending_quicker(std::size_t place, bool meets) const;

  Region region_;
  std::uint32_t rank_;
  std::size_t first_;
  std::array<Entry, kTrialPlaces> entries_{};  // sets of kTrialWays
  std::size_t place_ = 0;                      // of the running call
  std::uint64_t time_ = 0;                     // runs of all
};

}  // namespace transports
