#include "circle.hpp"

#include <algorithm>
#include <utility>

namespace transports {
namespace {

// What acts: a rank's program, or its engine.
struct Actor {
  std::uint32_t rank;
  bool is_program;

  bool operator==(const Actor&) const = default;
};

bool is_in_call(const Standing& standing) {
  return standing.entered.load(std::memory_order_relaxed) !=
         standing.completed.load(std::memory_order_relaxed);
}

}  // namespace

std::vector<Circle::Seen> Circle::chain(const Region& region, std::uint32_t rank, bool in_message) {
  constexpr auto relaxed = std::memory_order_relaxed;  // looked at twice, with time between
  const std::uint32_t ranks = region.geometry().ranks;
  std::vector<Seen> waits;
  std::vector<Actor> visited;
  Actor actor{rank, in_message};
  while (std::find(visited.begin(), visited.end(), actor) == visited.end()) {
    visited.push_back(actor);
    const auto& standing = region.standing(actor.rank);
    const bool is_message =
        actor.is_program && standing.in_message.whom.load(relaxed) != Waits::kNobody;
    const Waits& wait = is_message ? standing.in_message : standing.in_call;
    // Acquire: with the count comes for whom the wait is.
    const std::uint32_t count = wait.count.load(std::memory_order_acquire);
    std::uint32_t whom = wait.whom.load(relaxed);
    if (whom == Waits::kAnybody && ranks == 2) whom = 2 - actor.rank;
    if (whom == Waits::kNobody || whom > ranks) return {};
    if (actor.is_program) {
      // Acquire: with it comes what the rank has shown of its messages before it said so.
      if (wait.is_alone.load(std::memory_order_acquire) == 0) return {};
      if (!is_message) {
        const bool awaits_call =
            standing.is_background.load(relaxed) == 0 || standing.in_queue.load(relaxed) != 0;
        if (!is_in_call(standing) || !awaits_call) return {};
        actor.is_program = false;
        continue;
      }
    }
    const auto& other = region.standing(whom - 1);
    if (is_message && (other.is_moving.load(std::memory_order_acquire) != 0 ||
                       standing.is_moving.load(std::memory_order_acquire) != 0 ||
                       standing.is_untaken.load(relaxed) != 0)) {
      return {};
    }
    waits.push_back({{actor.rank, is_message, whom - 1}, count, wait.looks.load(relaxed)});
    actor = {whom - 1, is_message || !is_in_call(other)};
  }
  return waits;
}

bool Circle::stands(const Region& region, std::uint32_t rank, bool in_message) {
  const auto now = chain(region, rank, in_message);
  const bool is_same =
      !now.empty() &&
      std::equal(now.begin(), now.end(), seen_.begin(), seen_.end(), [](auto& one, auto& before) {
        return one.link == before.link && one.count == before.count &&
               one.looks - before.looks >= 2;
      });
  if (!is_same) seen_ = now;
  return is_same;
}

std::vector<Circle::Link> Circle::links() const {
  std::vector<Link> found;
  for (const auto& each : seen_) found.push_back(each.link);
  return found;
}

}  // namespace transports
