// Symmetric memory: blocks that every rank of a host maps, a part for each rank.
//
//   block   | part of rank 0 | part of rank 1 | ...        parts of one length, `stride` apart
//
// An array at some offset of one's own part lies at the same offset of every peer's part, so one
// look at the own address tells where the others are.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "mapping.hpp"

namespace transports {

class SymmetricBlock {
 public:
  // Maps all of `fd`: `parts` parts of `bytes` each. Throws std::invalid_argument if they do not
  // fit in it, std::system_error.
  SymmetricBlock(int fd, std::uint32_t parts, std::uint64_t bytes);

  // The file's size that so many parts need.
  static std::uint64_t file_bytes(std::uint32_t parts, std::uint64_t bytes);

  std::byte* part(std::uint32_t index) const { return mapping_.data() + index * stride_; }
  std::uint32_t parts() const { return parts_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  Mapping mapping_;
  std::uint32_t parts_;
  std::uint64_t bytes_;
  std::uint64_t stride_;
};

// The blocks that one communicator can reach. Any thread may call; a place stays valid while its
// block is not removed, and blocks are removed only once no array in them is left.
class SymmetricMemory {
 public:
  // Where an array lies: at `offset` of the part of every rank.
  struct Place {
    const SymmetricBlock* block;
    const std::uint32_t* parts;  // of the communicator's ranks
    std::uint64_t id;            // of the block, the same on every rank
    std::uint64_t offset;

    std::byte* at(std::uint32_t rank) const { return block->part(parts[rank]) + offset; }
    bool operator==(const Place&) const = default;
  };

  // `parts[r]` is the part of the communicator's rank r; `rank` is the own.
  void add(std::uint64_t id, std::shared_ptr<const SymmetricBlock> block,
           std::vector<std::uint32_t> parts, std::uint32_t rank);
  void remove(std::uint64_t id);
  bool is_empty() const { return size_.load(std::memory_order_relaxed) == 0; }
  // Of memory that lies whole in the own part of a block; nothing of any other.
  std::optional<Place> find(const std::byte* memory, std::uint64_t bytes) const;

 private:
  struct Entry {
    std::uint64_t id;
    std::shared_ptr<const SymmetricBlock> block;
    std::vector<std::uint32_t> parts;
    const std::byte* own;
  };
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<const Entry>> entries_;
  std::atomic<std::size_t> size_{0};
};

}  // namespace transports
