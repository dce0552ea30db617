#include "matching.hpp"

#include <algorithm>
#include <utility>

namespace transports {
namespace {

bool wants(const Operation& receive, std::int32_t tag) {
  return receive.tag == kAny || receive.tag == tag;
}

}  // namespace

std::shared_ptr<Operation> Matching::find_receive(std::uint32_t source, std::int32_t tag) {
  const auto first = [tag](auto& queue) {
    return std::find_if(queue.begin(), queue.end(),
                        [tag](const auto& receive) { return wants(*receive, tag); });
  };
  auto* queue = &posted_[source];
  auto found = first(*queue);
  auto& others = posted_.back();
  const auto other = first(others);
  // Of one that names the source and one that does not, the first posted.
  if (other != others.end() && (found == queue->end() || (*other)->order < (*found)->order)) {
    queue = &others;
    found = other;
  }
  if (found == queue->end()) return nullptr;
  auto receive = std::move(*found);
  queue->erase(found);
  return receive;
}

void Matching::post(std::shared_ptr<Operation> receive) {
  receive->order = orders_++;
  auto& queue = receive->peer == kAny ? posted_.back() : posted_[receive->peer];
  queue.push_back(std::move(receive));
}

bool Matching::withdraw(const Operation& receive) {
  auto& queue = receive.peer == kAny ? posted_.back() : posted_[receive.peer];
  const auto found = std::find_if(queue.begin(), queue.end(),
                                  [&](const auto& posted) { return posted.get() == &receive; });
  if (found == queue.end()) return false;
  queue.erase(found);
  return true;
}

std::optional<Arrival> Matching::find_arrival(const Operation& receive) {
  std::deque<Arrival>* best_queue = nullptr;
  std::deque<Arrival>::iterator best;
  const auto look = [&](std::deque<Arrival>& queue) {
    const auto found = std::find_if(queue.begin(), queue.end(), [&](const Arrival& arrival) {
      return wants(receive, arrival.packet.tag);
    });
    if (found == queue.end()) return;
    if (best_queue != nullptr && best->order < found->order) return;
    best_queue = &queue;
    best = found;
  };
  if (receive.peer == kAny) {
    for (auto& queue : arrived_) look(queue);
  } else {
    look(arrived_[receive.peer]);
  }
  if (best_queue == nullptr) return std::nullopt;
  Arrival arrival = std::move(*best);
  best_queue->erase(best);
  return arrival;
}

void Matching::keep(Arrival arrival) {
  arrival.order = orders_++;
  arrived_[arrival.source].push_back(std::move(arrival));
}

void Matching::keep_first(Arrival arrival) {
  arrival.order = 0;
  arrived_[arrival.source].push_front(std::move(arrival));
}

std::vector<std::shared_ptr<Operation>> Matching::clear() {
  std::vector<std::shared_ptr<Operation>> receives;
  for (auto& queue : posted_) {
    receives.insert(receives.end(), queue.begin(), queue.end());
    queue.clear();
  }
  for (auto& queue : arrived_) queue.clear();
  return receives;
}

}  // namespace transports
