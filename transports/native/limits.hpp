// What this machine can do at best: the fewest bytes moved the fastest way, with nothing around.
//
// The benchmark measures its limit with these, on the same cores and with the same working set as
// what it compares: ranks tell each other by a flag that their data are there, then move what a
// collective must move at least, each its share. No collective can be quicker than the quickest
// method; how near it comes is its quality.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace transports {

// How bytes are moved.
enum class Method {
  copy,    // memcpy, one destination after the other
  stream,  // as `kernel`, with stores that bypass the caches
  kernel,  // every source read once, every destination written once, in one pass
};

// Throws std::invalid_argument if there is none of this name.
Method method_of(const std::string& name);

// Adds up the sources into every destination; a single source is merely copied. What is added are
// 32-bit integers: the cheapest arithmetic there is, since a limit is about memory.
struct Move {
  std::vector<const std::byte*> sources;
  std::vector<std::byte*> destinations;
  std::size_t bytes;
};

// All addresses of a round's calls: call i works on its addresses plus (i % sets) * stride.
struct Rotation {
  std::size_t sets;
  std::size_t stride;
};

void run_move(Method method, const Move& move, std::size_t offset);

// How ranks tell each other, before each call's moves.
enum class News {
  exchange,  // every rank raises its flag and waits for those of all others
  pingpong,  // rank 0 raises its flag, rank 1 answers: two calls' moves, one after the other
};

struct Flags {
  std::byte* lines;  // a cache line a rank, in memory that they share, zero at the start
  std::uint32_t rank;
  std::uint32_t ranks;
};

// Makes `calls` calls, whose flags have the numbers after `number`; returns the last number. With
// pingpong only ranks 0 and 1 take part. Throws std::runtime_error if a flag is not raised within
// `timeout` seconds.
std::uint32_t run_limit(Method method, News news, const std::vector<Move>& moves, Rotation rotation,
                        Flags flags, std::uint32_t number, std::uint64_t calls, double timeout);

}  // namespace transports
