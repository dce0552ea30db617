#include "calls.hpp"

#include <numeric>
#include <string>
#include <vector>

namespace fuzzing {

using namespace transports;

namespace {

using Numbers = std::vector<std::uint32_t>;
using Chunks = std::vector<Place>;

// Around what a descriptor, a slot and the thresholds of the engine hold.
constexpr std::uint64_t kBytes[] = {0, 8, 40, 48, 64, 128, 256, 1000, 4096, 32768, 65536, 80000};

Chunks in(Space space, const Numbers& chunks) {
  Chunks found;
  for (const auto chunk : chunks) found.push_back({space, chunk});
  return found;
}

// All send all they have to all, and add it up in rank order.
void exchange(Plan& plan, const Numbers& peers, const Numbers& chunks) {
  plan.inputs = plan.outputs = chunks;
  Instruction send{chunks, {}, peers, in(Space::input, chunks), {}};
  Instruction add{chunks, peers, {}, in(Space::input, chunks), in(Space::output, chunks)};
  for (const auto peer : peers) add.own_at += peer < plan.rank;
  plan.instructions = {send, add};
}

// What comes from one peer goes on to the others.
void relay(Plan& plan, const Numbers& peers, const Numbers& chunks) {
  plan.outputs = chunks;
  const Numbers others(peers.begin() + 1, peers.end());
  plan.instructions = {{chunks, {peers[0]}, others, {}, in(Space::output, chunks)}};
}

// Sends only, so that whatever a peer sends is of another call.
void tell(Plan& plan, const Numbers& peers, const Numbers& chunks) {
  plan.inputs = chunks;
  plan.instructions = {{chunks, {}, peers, in(Space::input, chunks), {}}};
}

// One takes, adds and keeps in scratch, then copies.
void gather_up(Plan& plan, const Numbers& peers, const Numbers& chunks) {
  plan.inputs = plan.outputs = plan.scratch = chunks;
  Instruction add{chunks, {peers[0]}, {}, in(Space::input, chunks), in(Space::scratch, chunks)};
  add.own_at = peers[0] < plan.rank;
  plan.instructions = {add,
                       {chunks, {}, {}, in(Space::scratch, chunks), in(Space::output, chunks)}};
}

// Passes that overlap: what is sent in one wave is received in the next.
void pass_on(Plan& plan, const Numbers& peers, const Numbers& chunks) {
  exchange(plan, {peers[0]}, chunks);
  plan.delays = {0, 1};
  plan.in_flight = 2;
}

}  // namespace

Call make_call(Bytes& bytes, const Geometry& geometry, std::uint32_t rank) {
  constexpr decltype(&exchange) kPlans[] = {exchange, relay, tell, gather_up, pass_on};
  Numbers peers;
  for (std::uint32_t peer = 0; peer < geometry.ranks; ++peer) {
    if (peer != rank) peers.push_back(peer);
  }
  Plan plan;
  plan.rank = rank;
  plan.size = geometry.ranks;
  plan.widest = 1 + bytes.below(2);
  plan.chunk_count = plan.widest;
  Numbers chunks(plan.chunk_count);
  std::iota(chunks.begin(), chunks.end(), 0);
  kPlans[bytes.below(std::size(kPlans))](plan, peers, chunks);
  const auto dtype = static_cast<DType>(bytes.below(dtype_count));
  const auto wanted = static_cast<Op>(bytes.below(op_count));
  const Op op = supports(dtype, wanted) ? wanted : Op::sum;
  const std::size_t item = size_of(dtype);
  std::vector<std::uint64_t> lengths;
  for (std::uint32_t i = 0; i < plan.chunk_count; ++i) {
    lengths.push_back(kBytes[bytes.below(std::size(kBytes))] / item);
  }
  // Without a cache to fit in, results are stored past it.
  const std::uint64_t cache = bytes.below(2) << 20;
  return Call(std::move(plan), std::move(lengths), item, Reduction{dtype, op, op == Op::sum},
              geometry.slot_bytes, geometry.in_flight(), cache, "a call");
}

}  // namespace fuzzing
