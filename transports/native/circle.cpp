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

std::vector<Circle::Seen> Circle::chain(const Region& region, std::uint32_t rank, bool in_message,
                                        Programs programs) {
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
      const bool is_alone = wait.is_alone.load(std::memory_order_acquire) != 0;
      if (!is_alone && programs == Programs::alone) return {};
      if (!is_message) {
        if (!is_in_call(standing)) return {};
        if (standing.is_background.load(relaxed) != 0) {
          // Its queue runs the call; the program waits for that only as long as it says so. What
          // it waits for may just have ended, so it must have looked, too.
          const std::uint32_t changes = standing.queue_changes.load(relaxed);
          if (standing.in_queue.load(relaxed) == 0) return {};
          waits.push_back(
              {{actor.rank, false, actor.rank}, changes, standing.queue_looks.load(relaxed)});
        }
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
    const bool is_between = !is_message && !is_in_call(other);
    // The queue of asynchronous calls makes the next by itself, when it is done with the last.
    if (is_between && other.queued.load(std::memory_order_acquire) != 0) return {};
    actor = {whom - 1, is_message || is_between};
  }
  return waits;
}

bool Circle::stands(const Region& region, std::uint32_t rank, bool in_message) {
  const auto now = chain(region, rank, in_message, Programs::alone);
  const auto is_same = [](const Seen& one, const Seen& before) {
    return one.link == before.link && one.count == before.count;
  };
  if (!std::equal(now.begin(), now.end(), seen_.begin(), seen_.end(), is_same)) {
    seen_ = now;
    return false;
  }
  const auto has_looked = [](const Seen& one, const Seen& before) {
    return one.looks - before.looks >= 2;
  };
  return !now.empty() && std::equal(now.begin(), now.end(), seen_.begin(), seen_.end(), has_looked);
}

std::vector<Circle::Link> Circle::links() const {
  std::vector<Link> found;
  for (const auto& each : seen_) {
    const bool is_own_call = !each.link.in_message && each.link.whom == each.link.rank;
    if (!is_own_call) found.push_back(each.link);
  }
  return found;
}

}  // namespace transports
