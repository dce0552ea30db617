#include "limits.hpp"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <stdexcept>

#include "region.hpp"
#include "waiting.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace transports {
namespace {

using Word = std::uint32_t;

// The pass over [begin, bytes) that needs nothing of the processor.
void pass_plain(const Move& move, std::size_t offset, std::size_t begin) {
  std::size_t at = begin;
  for (; at + sizeof(Word) <= move.bytes; at += sizeof(Word)) {
    Word sum = 0;
    for (const std::byte* source : move.sources) {
      Word word;
      std::memcpy(&word, source + offset + at, sizeof word);
      sum += word;
    }
    for (std::byte* destination : move.destinations) {
      std::memcpy(destination + offset + at, &sum, sizeof sum);
    }
  }
  for (; at < move.bytes; ++at) {
    unsigned sum = 0;
    for (const std::byte* source : move.sources) sum += static_cast<unsigned>(source[offset + at]);
    for (std::byte* destination : move.destinations) {
      destination[offset + at] = static_cast<std::byte>(sum);
    }
  }
}

#if defined(__x86_64__)

constexpr std::size_t kBlock = 128;  // four vectors: enough loads in flight for any source

// Hardware prefetches what lies in memory and in the own caches, not what another core has written.
constexpr std::size_t kAhead = 1024;

// With the numbers of sources and destinations known, addresses stay in registers; 0: not known.
template <bool Streaming, std::size_t Sources, std::size_t Destinations>
__attribute__((target("avx2"))) void pass_avx2(const Move& move, std::size_t offset) {
  const std::size_t sources = Sources ? Sources : move.sources.size();
  const std::size_t destinations = Destinations ? Destinations : move.destinations.size();
  const std::byte* from[Sources ? Sources : 1];
  std::byte* to[Destinations ? Destinations : 1];
  for (std::size_t i = 0; i < Sources; ++i) from[i] = move.sources[i];
  for (std::size_t i = 0; i < Destinations; ++i) to[i] = move.destinations[i];
  const auto source = [&](std::size_t i) { return Sources ? from[i] : move.sources[i]; };
  const auto destination = [&](std::size_t i) {
    return Destinations ? to[i] : move.destinations[i];
  };

  const std::size_t whole = move.bytes / kBlock * kBlock;
  for (std::size_t at = offset; at < offset + whole; at += kBlock) {
    const auto* first = reinterpret_cast<const __m256i*>(source(0) + at);
    for (std::size_t i = 0; i < sources; ++i) {
      __builtin_prefetch(source(i) + at + kAhead, 0, 3);
      __builtin_prefetch(source(i) + at + kAhead + kLine, 0, 3);
    }
    __m256i a = _mm256_loadu_si256(first), b = _mm256_loadu_si256(first + 1);
    __m256i c = _mm256_loadu_si256(first + 2), d = _mm256_loadu_si256(first + 3);
    for (std::size_t i = 1; i < sources; ++i) {
      const auto* more = reinterpret_cast<const __m256i*>(source(i) + at);
      a = _mm256_add_epi32(a, _mm256_loadu_si256(more));
      b = _mm256_add_epi32(b, _mm256_loadu_si256(more + 1));
      c = _mm256_add_epi32(c, _mm256_loadu_si256(more + 2));
      d = _mm256_add_epi32(d, _mm256_loadu_si256(more + 3));
    }
    for (std::size_t i = 0; i < destinations; ++i) {
      auto* out = reinterpret_cast<__m256i*>(destination(i) + at);
      if constexpr (Streaming) {
        _mm256_stream_si256(out, a);
        _mm256_stream_si256(out + 1, b);
        _mm256_stream_si256(out + 2, c);
        _mm256_stream_si256(out + 3, d);
      } else {
        _mm256_storeu_si256(out, a);
        _mm256_storeu_si256(out + 1, b);
        _mm256_storeu_si256(out + 2, c);
        _mm256_storeu_si256(out + 3, d);
      }
    }
  }
  pass_plain(move, offset, whole);
}

template <bool Streaming>
void pass_avx2_of(const Move& move, std::size_t offset) {
  const std::size_t sources = move.sources.size(), destinations = move.destinations.size();
  if (sources == 1 && destinations == 1) return pass_avx2<Streaming, 1, 1>(move, offset);
  if (sources == 1 && destinations == 2) return pass_avx2<Streaming, 1, 2>(move, offset);
  if (sources == 2 && destinations == 1) return pass_avx2<Streaming, 2, 1>(move, offset);
  if (sources == 2 && destinations == 2) return pass_avx2<Streaming, 2, 2>(move, offset);
  pass_avx2<Streaming, 0, 0>(move, offset);
}

// Every x86-64 has these.
void pass_sse2_streaming(const Move& move, std::size_t offset) {
  const std::size_t whole = move.bytes / kBlock * kBlock;
  for (std::size_t at = offset; at < offset + whole; at += sizeof(__m128i)) {
    __m128i sum = _mm_loadu_si128(reinterpret_cast<const __m128i*>(move.sources[0] + at));
    for (std::size_t i = 1; i < move.sources.size(); ++i) {
      const auto* more = reinterpret_cast<const __m128i*>(move.sources[i] + at);
      sum = _mm_add_epi32(sum, _mm_loadu_si128(more));
    }
    for (std::byte* destination : move.destinations) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(destination + at), sum);
    }
  }
  pass_plain(move, offset, whole);
}

bool streams_to(const Move& move, std::size_t offset) {
  return std::all_of(move.destinations.begin(), move.destinations.end(), [&](std::byte* each) {
    return (reinterpret_cast<std::uintptr_t>(each) + offset) % sizeof(__m256i) == 0;
  });
}

#endif

void pass(const Move& move, std::size_t offset, bool streaming) {
  if (move.sources.empty()) return;
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2");
  if (streaming && streams_to(move, offset)) {
    avx2 ? pass_avx2_of<true>(move, offset) : pass_sse2_streaming(move, offset);
    _mm_sfence();  // before a flag tells of them
    return;
  }
  if (avx2) return pass_avx2_of<false>(move, offset);
#else
  (void)streaming;
#endif
  pass_plain(move, offset, 0);
}

std::atomic<std::uint32_t>& flag_of(const Flags& flags, std::uint32_t rank) {
  return *reinterpret_cast<std::atomic<std::uint32_t>*>(flags.lines + rank * kLine);
}

constexpr unsigned kSpins = 2000;             // before the core is offered to whoever needs it
constexpr unsigned kYieldsBetweenLooks = 64;  // at the clock

void wait_for(const Flags& flags, std::uint32_t peer, std::uint32_t number, double timeout) {
  std::atomic<std::uint32_t>& flag = flag_of(flags, peer);
  for (unsigned spin = 0; spin < kSpins; ++spin) {
    if (reached(flag.load(std::memory_order_acquire), number)) return;
    pause_briefly();
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout);
  for (unsigned yield = 1; !reached(flag.load(std::memory_order_acquire), number); ++yield) {
    sched_yield();
    if (yield % kYieldsBetweenLooks == 0 && std::chrono::steady_clock::now() > deadline) {
      throw std::runtime_error("rank " + std::to_string(peer) + " has not raised its flag within " +
                               std::to_string(timeout) + " s");
    }
  }
}

}  // namespace

Method method_of(const std::string& name) {
  if (name == "copy") return Method::copy;
  if (name == "stream") return Method::stream;
  if (name == "kernel") return Method::kernel;
  throw std::invalid_argument("method: expected copy, stream or kernel, found " + name);
}

void run_move(Method method, const Move& move, std::size_t offset) {
  if (method != Method::copy) return pass(move, offset, method == Method::stream);
  for (std::byte* destination : move.destinations) {
    std::memcpy(destination + offset, move.sources[0] + offset, move.bytes);
  }
}

std::uint32_t run_limit(Method method, News news, const std::vector<Move>& moves, Rotation rotation,
                        Flags flags, std::uint32_t number, std::uint64_t calls, double timeout) {
  std::atomic<std::uint32_t>& own = flag_of(flags, flags.rank);
  for (std::uint64_t call = 0; call < calls; ++call) {
    const std::size_t offset = call % rotation.sets * rotation.stride;
    ++number;
    if (news == News::pingpong) {
      if (flags.rank > 1) continue;
      if (flags.rank == 0) own.store(number, std::memory_order_release);
      wait_for(flags, 1 - flags.rank, number, timeout);
      for (const Move& move : moves) run_move(method, move, offset);
      if (flags.rank == 1) own.store(number, std::memory_order_release);
      continue;
    }
    own.store(number, std::memory_order_release);
    for (std::uint32_t peer = 0; peer < flags.ranks; ++peer) {
      if (peer != flags.rank) wait_for(flags, peer, number, timeout);
    }
    for (const Move& move : moves) run_move(method, move, offset);
  }
  return number;
}

}  // namespace transports
