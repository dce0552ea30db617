// One rank as Python holds it: the engine, the mapping it lives on, and the calls it knows by the
// arrays they are made with.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "engine.hpp"
#include "known_calls.hpp"
#include "mapping.hpp"

namespace transports {

class Rank {
 public:
  using Peers = std::vector<std::tuple<std::string, std::uint32_t, int>>;  // host, pid, pidfd

  // `carrier` reaches the ranks of other hosts, if there are any.
  Rank(int fd, std::uint32_t rank, const Peers& peers, bool crowded,
       std::shared_ptr<Carrier> carrier);
  ~Rank();
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // `input` and `output` as Buffer takes them; `owner` is what the output's memory lives with,
  // `input_owner` what the input's does.
  void execute(const Call& call, nanobind::handle input, nanobind::handle output, double timeout,
               bool background, nanobind::handle owner, nanobind::handle input_owner);

  // Runs the call that was remembered for `ask`; false, and nothing was done, if there is none, or
  // the arrays are not such as the engine takes as they are, or calls wait in the queue.
  bool repeat(const KnownCalls::Ask& ask);
  // Of one of MPI's own; only its library's guarantees.
  bool repeat_mpis(const KnownCalls::Found& found);
  void remember(const KnownCalls::Ask& ask, nanobind::handle call, bool is_told);
  // Whether the next call of the rank that this one hears of first is `call`; waits for its
  // message.
  bool next_is(const Call& call, double timeout);
  // Whether `bytes` of memory lie in the own part of a symmetric block.
  bool is_symmetric(nanobind::handle memory, std::uint64_t bytes);
  // Asynchronous calls that have begun and not ended: what is repeated must wait for its turn.
  void queue(int more) {
    queued_.fetch_add(more, std::memory_order_relaxed);
    engine_.show_queued(more);
  }
  // Threads of the program that wait for the end of an asynchronous call; 0: one still does.
  void wait_in_queue(int more) { engine_.show_in_queue(more); }
  // Seconds that a repeated call may take.
  void set_timeout(double seconds) { timeout_ = seconds; }

  Engine& engine() { return engine_; }
  KnownCalls& known() { return known_; }

 private:
  void run(const Call& call, const std::byte* input, std::byte* output, double timeout,
           bool background, bool& stay_in_use);
  // Keeps what the arrays' memory lives with for ever if `work` fails while others may still write
  // there, or MPI read.
  template <class Work>
  void keeping(nanobind::handle input, nanobind::handle owner, const Work& work);

  Mapping mapping_;
  std::shared_ptr<Carrier> carrier_;
  Engine engine_;
  KnownCalls known_;
  double timeout_ = 1800;
  std::atomic<int> queued_{0};
};

}  // namespace transports
