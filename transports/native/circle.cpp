#include "circle.hpp"

#include <algorithm>
#include <map>
#include <utility>

namespace transports {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;  // what is read is looked at again later

bool is_in_call(const Standing& standing) {
  return standing.entered.load(relaxed) != standing.completed.load(relaxed);
}

bool shows_wait(const Standing& standing) {
  return standing.in_message.whom.load(relaxed) != Waits::kNobody || is_in_call(standing);
}

}  // namespace

bool Circle::follow(Actor actor, const Region& region, Programs programs, const HasEnded& has_ended,
                    Found& found, std::vector<Actor>& open) {
  const std::uint32_t ranks = region.geometry().ranks;
  const auto& standing = region.standing(actor.rank);
  const bool is_message =
      actor.is_program && standing.in_message.whom.load(relaxed) != Waits::kNobody;
  const Waits& wait = is_message ? standing.in_message : standing.in_call;
  // Acquire: with the count comes for whom the wait is.
  const std::uint32_t count = wait.count.load(std::memory_order_acquire);
  const std::uint32_t whom = wait.whom.load(relaxed);
  const bool is_any = is_message && whom == Waits::kAnybody;
  // What stands there anybody may have written.
  if (whom == Waits::kNobody || (whom > ranks && !is_any)) return false;
  if (actor.is_program) {
    // Acquire: with it comes what the rank has shown of its messages before it said so.
    const bool is_alone = wait.is_alone.load(std::memory_order_acquire) != 0;
    if (!is_alone && programs == Programs::alone) return false;
    if (!is_message) {
      if (!is_in_call(standing)) return false;
      if (standing.is_background.load(relaxed) != 0) {
        // Its queue runs the call; the program waits for that only as long as it says so. What
        // it waits for may just have ended, so it must have looked, too.
        const std::uint32_t changes = standing.queue_changes.load(relaxed);
        if (standing.in_queue.load(relaxed) == 0) return false;
        found.waits.push_back(
            {{actor.rank, false, actor.rank}, changes, standing.queue_looks.load(relaxed)});
      }
      open.push_back({actor.rank, false});
      return true;
    }
    if (standing.is_moving.load(std::memory_order_acquire) != 0 ||
        standing.is_untaken.load(relaxed) != 0) {
      return false;
    }
  }
  found.waits.push_back({{actor.rank, is_message, is_any ? Waits::kAnybody : whom - 1},
                         count,
                         wait.looks.load(relaxed)});
  const auto is_asked = [&](std::uint32_t peer) {
    return is_any ? peer != actor.rank : peer == whom - 1;
  };
  for (std::uint32_t peer = 0; is_any && peer < ranks; ++peer) {
    // Of many, one that does not wait is soon found.
    if (is_asked(peer) && !shows_wait(region.standing(peer)) && !has_ended(peer)) return false;
  }
  for (std::uint32_t peer = 0; peer < ranks; ++peer) {
    if (!is_asked(peer)) continue;
    if (peer != actor.rank && has_ended(peer)) {
      found.ended.insert(peer);
      continue;
    }
    const auto& other = region.standing(peer);
    if (is_message && other.is_moving.load(std::memory_order_acquire) != 0) return false;
    const bool is_between = !is_message && !is_in_call(other);
    // The queue of asynchronous calls makes the next by itself, when it is done with the last.
    if (is_between && other.queued.load(std::memory_order_acquire) != 0) return false;
    open.push_back({peer, is_message || is_between});
  }
  return true;
}

Circle::Found Circle::reached_from(Actor first, const Region& region, Programs programs,
                                   const HasEnded& has_ended) {
  Found found;
  // Each is asked about once: it takes a system call.
  std::map<std::uint32_t, bool> known;
  const HasEnded has_ended_once = [&](std::uint32_t peer) {
    const auto [place, is_new] = known.try_emplace(peer, false);
    if (is_new) place->second = has_ended(peer);
    return place->second;
  };
  std::vector<Actor> open{first}, visited;
  while (!open.empty()) {
    const Actor actor = open.back();
    open.pop_back();
    if (std::find(visited.begin(), visited.end(), actor) != visited.end()) continue;
    visited.push_back(actor);
    if (!follow(actor, region, programs, has_ended_once, found, open)) return {};
  }
  return found;
}

bool Circle::stands(const Region& region, std::uint32_t rank, bool in_message,
                    const HasEnded& has_ended) {
  const Found before =
      std::exchange(found_, reached_from({rank, in_message}, region, Programs::alone, has_ended));
  const auto is_same = [](const Seen& now, const Seen& then) {
    return now.link == then.link && now.count == then.count;
  };
  const auto has_looked = [](const Seen& now, const Seen& then) {
    return now.looks - then.looks >= 2;
  };
  const auto& now = found_.waits;
  const auto& then = before.waits;
  const bool is_still = found_.ended == before.ended &&
                        std::equal(now.begin(), now.end(), then.begin(), then.end(), is_same);
  if (!is_still) return false;
  if (!now.empty() && std::equal(now.begin(), now.end(), then.begin(), has_looked)) return true;
  found_ = before;  // as long as it stands, the looks are counted from when it was first seen
  return false;
}

std::vector<Circle::Link> Circle::links() const {
  std::vector<Link> links;
  for (const auto& each : found_.waits) {
    const bool is_own_call = !each.link.in_message && each.link.whom == each.link.rank;
    if (!is_own_call) links.push_back(each.link);
  }
  return links;
}

}  // namespace transports
