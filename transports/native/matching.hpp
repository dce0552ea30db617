// Which message goes to which receive, as MPI says: a message goes to the first posted receive
// that wants it, a receive gets the first arrived message that it wants.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "lane.hpp"
#include "operation.hpp"

namespace transports {

// A message that arrived before its receive was posted.
struct Arrival {
  std::uint32_t source;
  Packet packet;
  std::unique_ptr<std::byte[]> payload;  // of a whole message longer than Packet::kSmall
  std::uint64_t order = 0;
};

class Matching {
 public:
  explicit Matching(std::uint32_t ranks) : posted_(ranks + 1), arrived_(ranks) {}

  // The receive for a message of `source`, no longer posted; null if there is none.
  std::shared_ptr<Operation> find_receive(std::uint32_t source, std::int32_t tag);
  void post(std::shared_ptr<Operation> receive);
  // Takes a receive back; false if it is not posted, or no more.
  bool withdraw(const Operation& receive);
  // The message for a receive, no longer kept.
  std::optional<Arrival> find_arrival(const Operation& receive);
  void keep(Arrival arrival);
  // ... before all that are kept: it has come before them.
  void keep_first(Arrival arrival);
  // Forgets all; returns the receives.
  std::vector<std::shared_ptr<Operation>> clear();

 private:
  std::vector<std::deque<std::shared_ptr<Operation>>> posted_;  // by source; the last: any
  std::vector<std::deque<Arrival>> arrived_;                    // by source
  std::uint64_t orders_ = 0;
};

}  // namespace transports
