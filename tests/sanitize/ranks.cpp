// Ranks as threads of one process, over one region: thousands of calls of several plans, calls from
// a background thread and point-to-point at once, and a header that is written while it is checked,
// for ThreadSanitizer and AddressSanitizer to watch. Results are checked too.
//
// ThreadSanitizer does not know fences (atomic_thread_fence, membarrier), and the kernels' stores
// past the caches it does not see. In the engine fences order one thing only: that a rank which
// goes to sleep and one which moves a counter see each other (Waiter::fence_before_wake). No data
// is handed over by them; that is done by release and acquire on counters, which it does know. A
// missed wake-up is no race but a delay of some milliseconds; tests/transports/test_waking.py looks
// for those. Streaming stores are ordered by end_streaming(), which the processor alone needs.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "engine.hpp"
#include "point_to_point.hpp"

namespace {

using namespace transports;

constexpr double kTimeout = 60;
constexpr std::uint32_t kRanks = 3;
constexpr Geometry kGeometry{kRanks, 2, 2, 1024, 2, 128};
using Numbers = std::vector<std::uint32_t>;

[[noreturn]] void is_wrong(const char* what) {
  std::fprintf(stderr, "wrong result: %s\n", what);
  std::_Exit(3);
}

Plan plan_of(std::uint32_t rank) {
  Plan plan;
  plan.rank = rank;
  plan.size = kRanks;
  plan.chunk_count = 1;
  return plan;
}

Call bound(Plan plan, std::vector<std::uint64_t> lengths, const char* text) {
  return Call(std::move(plan), std::move(lengths), sizeof(double),
              Reduction{DType::float64, Op::sum, false}, kGeometry.slot_bytes,
              kGeometry.in_flight(), std::uint64_t{64} << 20, text);
}

Numbers others(std::uint32_t rank) {
  Numbers peers;
  for (std::uint32_t peer = 0; peer < kRanks; ++peer) {
    if (peer != rank) peers.push_back(peer);
  }
  return peers;
}

Instruction tell(Numbers peers) {
  Instruction step;
  step.targets = std::move(peers);
  return step;
}

Instruction hear(Numbers peers) {
  Instruction step;
  step.sources = std::move(peers);
  return step;
}

// All send all they have to all, and add it up; `delays` lets passes overlap.
Call allreduce(std::uint32_t rank, std::uint64_t count, bool overlaps) {
  Plan plan = plan_of(rank);
  const Numbers peers = others(rank);
  plan.inputs = plan.outputs = {0};
  Instruction add{{0}, peers, {}, {{Space::input, 0}}, {{Space::output, 0}}};
  add.own_at = rank;
  plan.instructions = {{{0}, {}, peers, {{Space::input, 0}}, {}}, add};
  if (overlaps) {
    plan.delays = {0, 1};
    plan.in_flight = 2;
  }
  return bound(std::move(plan), {count}, overlaps ? "overlapping allreduce" : "allreduce");
}

// From rank 0 along a chain: one way only, so that nothing but the messages orders what is read.
Call broadcast(std::uint32_t rank, std::uint64_t count) {
  Plan plan = plan_of(rank);
  const Numbers next = rank + 1 < kRanks ? Numbers{rank + 1} : Numbers{};
  if (rank == 0) {
    plan.inputs = {0};
    plan.instructions = {{{0}, {}, next, {{Space::input, 0}}, {}}};
  } else {
    plan.outputs = {0};
    plan.instructions = {{{0}, {rank - 1}, next, {}, {{Space::output, 0}}}};
  }
  return bound(std::move(plan), {count}, "broadcast");
}

// The same where the kernel copies: each adds up its third and writes it to all.
Call reached_allreduce(std::uint32_t rank, std::uint64_t count) {
  Plan plan = plan_of(rank);
  plan.chunk_count = kRanks;
  plan.inputs = plan.outputs = {0, 1, 2};
  plan.peer_inputs = plan.peer_outputs = {kRanks, plan.inputs};
  plan.remote = {Space::input, Space::output};
  Instruction add{{rank}, {}, {}, {{Space::input, rank}}, {{Space::output, rank}}};
  add.own_at = rank;
  for (const auto peer : others(rank)) {
    add.peeks.push_back({peer, Space::input});
    add.pokes.push_back({peer, Space::output});
  }
  plan.instructions = {tell(others(rank)), hear(others(rank)), add, tell(others(rank)),
                       hear(others(rank))};
  return bound(std::move(plan), {count - count / 3 * 2, count / 3, count / 3}, "allreduce");
}

// Rank 0 writes to all.
Call reached_broadcast(std::uint32_t rank, std::uint64_t count) {
  Plan plan = plan_of(rank);
  plan.peer_inputs = {{0}, {}, {}};
  plan.peer_outputs = {{}, {0}, {0}};
  plan.remote = {Space::output};
  if (rank == 0) {
    plan.inputs = {0};
    Instruction give{{0}, {}, {}, {{Space::input, 0}}, {}};
    for (const auto peer : others(rank)) give.pokes.push_back({peer, Space::output});
    plan.instructions = {hear({1, 2}), tell({1, 2}), give, tell({1, 2})};
  } else {
    plan.outputs = {0};
    plan.instructions = {tell({0}), hear({0}), hear({0})};
  }
  return bound(std::move(plan), {count}, "broadcast");
}

// All ranks are threads of it.
std::vector<Waiter::Peer> this_process() {
  std::vector<Waiter::Peer> peers;
  const auto pid = static_cast<std::uint32_t>(::getpid());
  for (std::uint32_t i = 0; i < kRanks; ++i) {
    peers.push_back({"here", pid, static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))});
  }
  return peers;
}

struct Rank {
  Rank(const Region& region, std::uint32_t number)
      : number(number),
        engine(region, number, this_process(), true),
        messages(region, engine.waiter()) {}

  std::uint32_t number;
  Engine engine;
  PointToPoint messages;
};

void run_calls(Rank& rank, int turns, bool background, bool reaches = false) {
  constexpr std::uint64_t kCounts[] = {1, 5, 6, 128, 1000};
  for (const auto count : kCounts) {
    const Call reached[] = {reached_allreduce(rank.number, count),
                            reached_broadcast(rank.number, count)};
    Call calls[] = {allreduce(rank.number, count, false), broadcast(rank.number, count),
                    allreduce(rank.number, count, true)};
    if (reaches) {
      calls[0].set_reached(reached[0], std::nullopt, false);
      calls[1].set_reached(reached[1], 0, true);
    }
    std::vector<double> x(count), out(count);
    for (int turn = 0; turn < turns; ++turn) {
      for (const Call& call : calls) {
        const bool sums = &call != &calls[1];
        // Several times the one-way call: it is what runs ahead.
        for (int again = 0; again < (sums ? 1 : 8); ++again) {
          const double base = turn + again;
          x.assign(count, base + (sums ? rank.number : 0));
          rank.engine.execute(call, reinterpret_cast<const std::byte*>(x.data()),
                              reinterpret_cast<std::byte*>(out.data()), kTimeout, background);
          const double expected = sums ? kRanks * base + 3 : base;
          if (sums || rank.number != 0) {
            if (out.front() != expected || out.back() != expected) is_wrong("a call");
          }
        }
      }
    }
  }
}

// Round the ring, several messages on their way, some longer than a slot.
void run_messages(Rank& rank, int turns) {
  constexpr std::uint64_t kLengths[] = {8, 100, 128, 5000};
  const auto next = static_cast<std::int32_t>((rank.number + 1) % kRanks);
  const auto before = static_cast<std::int32_t>((rank.number + kRanks - 1) % kRanks);
  for (int turn = 0; turn < turns; ++turn) {
    std::vector<std::vector<std::byte>> from, to;
    std::vector<PointToPoint::Handle> pending;
    for (const auto length : kLengths) {
      const auto tag = static_cast<std::int32_t>(length);
      from.emplace_back(length, static_cast<std::byte>(turn));
      to.emplace_back(length);
      const auto later = PointToPoint::Caller::waits_later;
      pending.push_back(rank.messages.post_send(from.back().data(), length, next, tag, {}, later));
      pending.push_back(
          rank.messages.post_receive(to.back().data(), length, before, tag, {}, later));
    }
    for (const auto& each : pending) rank.messages.wait(*each, kTimeout, true);
    for (const auto& each : to) {
      if (each.front() != static_cast<std::byte>(turn) || each.back() != each.front()) {
        is_wrong("a message");
      }
    }
  }
}

// One way only, whole messages: nothing but the lane orders what is read.
void run_one_way(Rank& rank, int turns) {
  std::vector<std::byte> memory(100);
  const auto at_once = PointToPoint::Caller::waits_at_once;
  for (int turn = 0; turn < turns; ++turn) {
    if (rank.number == 0) {
      memory.assign(memory.size(), static_cast<std::byte>(turn));
      const auto send = rank.messages.post_send(memory.data(), memory.size(), 1, 7, {}, at_once);
      rank.messages.wait(*send, kTimeout, true);
    } else if (rank.number == 1) {
      const auto receive =
          rank.messages.post_receive(memory.data(), memory.size(), 0, 7, {}, at_once);
      rank.messages.wait(*receive, kTimeout, true);
      if (memory.back() != static_cast<std::byte>(turn)) is_wrong("a message of one way");
    }
  }
}

// `work` on every rank at once.
template <class Work>
void on_all(std::vector<std::unique_ptr<Rank>>& ranks, const Work& work) {
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&] {
      try {
        work(*rank);
      } catch (const std::exception& error) {
        is_wrong(error.what());
      }
    });
  }
  for (auto& each : threads) each.join();
}

// Whoever can map a region can write its header while it is checked, with the very values, too. A
// field that is not read by an atomic load, which is once, may be read again after the check.
void attach_while_written(std::byte* memory, std::size_t bytes, int turns) {
  Header& header = *reinterpret_cast<Header*>(memory);
  std::thread writer([&] {
    for (int turn = 0; turn < turns; ++turn) {
      Geometry& theirs = header.geometry;
      const auto write = [](auto& place, auto value) {
        __atomic_store_n(&place, value, __ATOMIC_RELAXED);
      };
      write(header.version, kLayoutVersion);
      write(theirs.ranks, kGeometry.ranks);
      write(theirs.depth, kGeometry.depth);
      write(theirs.slots, kGeometry.slots);
      write(theirs.slot_bytes, kGeometry.slot_bytes);
      write(theirs.lane_slots, kGeometry.lane_slots);
      write(theirs.lane_bytes, kGeometry.lane_bytes);
    }
  });
  for (int turn = 0; turn < turns; ++turn) {
    if (Region::attach(memory, bytes).geometry().depth != kGeometry.depth) is_wrong("a header");
  }
  writer.join();
}

}  // namespace

int main(int argc, char** argv) {
  const int turns = argc > 1 ? std::atoi(argv[1]) : 40;
  const std::size_t bytes = kGeometry.total_bytes();
  std::byte* const memory = static_cast<std::byte*>(std::aligned_alloc(kPage, bytes));
  std::memset(memory, 0, bytes);
  Region::format(memory, kGeometry);
  const Region region = Region::attach(memory, bytes);
  {
    std::vector<std::unique_ptr<Rank>> ranks;
    for (std::uint32_t i = 0; i < kRanks; ++i) ranks.push_back(std::make_unique<Rank>(region, i));
    on_all(ranks, [&](Rank& rank) { run_calls(rank, turns, false); });
    on_all(ranks, [&](Rank& rank) {
      rank.engine.set_lend(Lend::always);
      run_calls(rank, turns, false);
      if (rank.engine.lent() == 0) is_wrong("nothing was lent");
      run_calls(rank, turns, false, true);
      if (rank.engine.reaching_calls() == 0) is_wrong("nobody was reached");
    });
    on_all(ranks, [&](Rank& rank) {
      rank.engine.set_lend(Lend::when_quicker);
      run_calls(rank, 2 * turns, false, true);
    });
    on_all(ranks, [&](Rank& rank) { run_one_way(rank, 20 * turns); });
    // Calls in the background while messages move, as an asynchronous call does.
    on_all(ranks, [&](Rank& rank) {
      std::thread background([&] { run_calls(rank, turns / 4 + 1, true); });
      run_messages(rank, turns);
      background.join();
    });
    on_all(ranks, [](Rank& rank) {
      rank.engine.check_complete();
      rank.messages.close();
      rank.engine.close();
    });
    std::printf("%llu calls a rank\n", static_cast<unsigned long long>(ranks[0]->engine.calls()));
  }
  attach_while_written(memory, bytes, 100 * turns);
  std::free(memory);
  return 0;
}
