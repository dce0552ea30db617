// Ranks that wait for each other in a circle, in collectives and in point-to-point: nobody can go
// on.
//
// A rank acts in two ways: its program makes calls and posts messages, and its engine moves a call
// that was made. From a wait a chain leads on: to the engine of the rank that is waited for, if
// that is in a call, else to its program; from a program to what its only thread waits for. A chain
// that comes back to where it was is a circle, if no part of it has moved meanwhile though each has
// looked again. A program with several threads, or handlers of signals, is taken to be able to act,
// as is a rank whose messages are on their way, or whose queue has asynchronous calls to make.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "region.hpp"

namespace transports {

class Circle {
 public:
  // Follows the chain from the wait of `rank` in a call, or in point-to-point. True once the same
  // circle has been there at two calls of this function, and every wait in it was looked at
  // between.
  bool stands(const Region& region, std::uint32_t rank, bool in_message);
  // Whether there is a circle if nothing but what waits can act in its ranks; that is asked only
  // then, since it is much to look at.
  static bool is_possible(const Region& region, std::uint32_t rank, bool in_message) {
    return !chain(region, rank, in_message, Programs::any).empty();
  }
  // Who waits for whom, for the text of an error: pairs of ranks.
  struct Link {
    std::uint32_t rank;
    bool in_message;
    std::uint32_t whom;

    bool operator==(const Link&) const = default;
  };
  std::vector<Link> links() const;

 private:
  struct Seen {
    Link link;
    std::uint32_t count;
    std::uint32_t looks;
  };
  // Through which programs a chain may lead.
  enum class Programs { alone, any };
  // The waits of a chain that ends in a circle; none if it ends otherwise.
  static std::vector<Seen> chain(const Region& region, std::uint32_t rank, bool in_message,
                                 Programs programs);

  std::vector<Seen> seen_;
};

}  // namespace transports
