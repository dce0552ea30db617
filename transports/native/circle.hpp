// Ranks that wait for each other, in collectives and in point-to-point: nobody can go on.
//
// A rank acts in two ways: its program makes calls and posts messages, and its engine moves a call
// that was made. From a wait a chain leads on: to the engine of the rank that is waited for, if
// that is in a call, else to its program; from a program to what its only thread waits for. A wait
// for a message of any rank ends through any of their programs, so a chain leads to each. If all
// that is reached waits, or has ended, no wait of it can end: a circle, or several, if no part of
// it has moved meanwhile though each has looked again. A program with several threads, or handlers
// of signals, is taken to be able to act, as is a rank whose messages are on their way, or whose
// queue has asynchronous calls to make.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "region.hpp"

namespace transports {

class Circle {
 public:
  // Whether a rank has ended, or left the communicator.
  using HasEnded = std::function<bool(std::uint32_t)>;

  // Follows the chains from the wait of `rank` in a call, or in point-to-point. True once the same
  // circle has been there at two calls of this function, and every wait in it was looked at
  // between.
  bool stands(const Region& region, std::uint32_t rank, bool in_message, const HasEnded& has_ended);
  // Whether there is a circle if nothing but what waits can act in its ranks; that is asked only
  // then, since it is much to look at.
  static bool is_possible(const Region& region, std::uint32_t rank, bool in_message,
                          const HasEnded& has_ended) {
    return !reached_from({rank, in_message}, region, Programs::any, has_ended).waits.empty();
  }
  // Who waits for whom, for the text of an error: a rank, or Waits::kAnybody.
  struct Link {
    std::uint32_t rank;
    bool in_message;
    std::uint32_t whom;

    bool operator==(const Link&) const = default;
  };
  std::vector<Link> links() const;
  // Those that have ended, and could have ended a wait.
  const std::set<std::uint32_t>& ended() const { return found_.ended; }

 private:
  struct Seen {
    Link link;
    std::uint32_t count;
    std::uint32_t looks;
  };
  struct Found {
    std::vector<Seen> waits;
    std::set<std::uint32_t> ended;
  };
  // What acts: a rank's program, or its engine.
  struct Actor {
    std::uint32_t rank;
    bool is_program;

    bool operator==(const Actor&) const = default;
  };
  // Through which programs a chain may lead.
  enum class Programs { alone, any };
  // Looks at one actor: adds its wait to `found`, and to `open` who could end it. False if it may
  // act by itself.
  static bool follow(Actor actor, const Region& region, Programs programs,
                     const HasEnded& has_ended, Found& found, std::vector<Actor>& open);
  // All waits that chains from `first` lead to; none if one leads to what can act.
  static Found reached_from(Actor first, const Region& region, Programs programs,
                            const HasEnded& has_ended);

  Found found_;
};

}  // namespace transports
