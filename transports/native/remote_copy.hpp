// Copies that the kernel makes between this process and another one of the same user.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace transports {

enum class Copied { done, nothing_there, forbidden, gone };

// Copies `bytes` at `address` of another process, or of this one, to `into`. Of the user's own
// processes those that may be traced allow it.
Copied pull(std::uint32_t pid, std::uint64_t address, std::byte* into, std::uint64_t bytes);
// Copies `bytes` from here to `address` of another process, which must be known to live: the number
// of one that has ended may be another's.
Copied push(std::uint32_t pid, std::uint64_t address, const std::byte* from, std::uint64_t bytes);
// Whether that process would allow it.
bool may_copy(std::uint32_t pid);
// Whether others may still copy from this process: not if it has become another user's, or has
// forbidden it.
bool is_traceable();
// Whether so many processes must begin until the number of one that has ended is given again that
// nobody sees it happen between two lines of a program: Linux gives them in turn.
bool are_numbers_plenty();

// Whether the kernel would copy this memory of ours: not that of a device, say. To ask takes a
// microsecond, so that places are remembered.
class CopiedMemory {
 public:
  // From it, and, if it is `written`, to it.
  bool holds(const std::byte* memory, std::uint64_t bytes, bool written = false);

 private:
  struct Range {
    const std::byte* memory;
    std::uint64_t bytes;
    bool written;
  };
  std::array<Range, 64> known_{};
};

}  // namespace transports
