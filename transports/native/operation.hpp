// One send or receive under way.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "failure.hpp"

namespace transports {

inline constexpr std::int32_t kAny = -1;  // any source, any tag

// What a message is, in a few characters that travel with it, so that an error can name both
// sides: "float32[1024]". What is longer is cut.
struct What {
  std::array<std::uint64_t, 3> words{};

  static What of(std::string_view text) {
    What what;
    std::memcpy(what.words.data(), text.data(), std::min(text.size(), sizeof what.words));
    return what;
  }
  bool is_empty() const { return words[0] == 0; }
  bool operator==(const What&) const = default;
  // Printable, whatever the peer wrote there.
  std::string text() const {
    std::array<char, sizeof words> characters;
    std::memcpy(characters.data(), words.data(), sizeof words);
    std::string found;
    for (const char each : characters) {
      if (each == '\0') break;
      found += each >= ' ' && each <= '~' ? each : '?';
    }
    return found.empty() ? "a message" : found;
  }
};

// Made and moved on by PointToPoint, under its lock; other threads look only at `state`, and at
// the rest once that is not `pending`.
struct Operation {
  enum class State : std::uint32_t { pending, complete, failed };

  // A send.
  Operation(const void* owner, const std::byte* from, std::uint64_t bytes, std::int32_t dest,
            std::int32_t tag, const What& what)
      : owner(owner), is_send(true), from(from), bytes(bytes), peer(dest), tag(tag), what(what) {}
  // A receive.
  Operation(const void* owner, std::byte* to, std::uint64_t bytes, std::int32_t source,
            std::int32_t tag, const What& what)
      : owner(owner), is_send(false), to(to), bytes(bytes), peer(source), tag(tag), what(what) {}

  const void* const owner;  // the PointToPoint it was posted to
  const bool is_send;
  const std::byte* const from = nullptr;
  std::byte* const to = nullptr;
  const std::uint64_t bytes;
  std::int32_t peer;  // of a receive: may be kAny, until a message is found for it
  std::int32_t tag;   // the same
  const What what;
  std::uint32_t message = 0;  // number of a long message on its lane
  std::uint64_t order = 0;    // of receives, as posted
  std::uint64_t moved = 0;    // bytes of a long message
  FailureKind failure_kind{};
  std::string failure;
  std::atomic<State> state{State::pending};

  bool is_done() const {
    // Acquire: memory received and the fields above are ours to read once this says so.
    return state.load(std::memory_order_acquire) != State::pending;
  }
  // Of one that is done.
  bool has_failed() const { return state.load(std::memory_order_relaxed) == State::failed; }
  void check() const {
    if (has_failed()) throw Failure(failure_kind, failure);
  }
};

}  // namespace transports
