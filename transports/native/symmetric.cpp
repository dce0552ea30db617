#include "symmetric.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "region.hpp"

namespace transports {
namespace {

// Parts begin at different places of a page: of a sum over many ranks, whose operands lie at one
// offset each, not all would else compete for the same few places of a cache.
constexpr std::uint64_t kSkew = 17 * kLine;

std::uint64_t stride_of(std::uint64_t bytes) {
  return round_up(bytes, kPage) + kSkew;
}

}  // namespace

std::uint64_t SymmetricBlock::file_bytes(std::uint32_t parts, std::uint64_t bytes) {
  return round_up(parts * stride_of(bytes), kPage);
}

SymmetricBlock::SymmetricBlock(int fd, std::uint32_t parts, std::uint64_t bytes)
    : mapping_(fd), parts_(parts), bytes_(bytes), stride_(stride_of(bytes)) {
  // By division: a product or sum of what a file is said to hold may pass 2^64.
  if (parts == 0 || bytes > mapping_.size() || stride_ > mapping_.size() / parts) {
    throw std::invalid_argument("a block of " + std::to_string(parts) + " parts of " +
                                std::to_string(bytes) + " bytes does not fit in a file of " +
                                std::to_string(mapping_.size()));
  }
}

void SymmetricMemory::add(std::uint64_t id, std::shared_ptr<const SymmetricBlock> block,
                          std::vector<std::uint32_t> parts, std::uint32_t rank) {
  for (const auto part : parts) {
    if (part >= block->parts()) throw std::invalid_argument("a block has no such part");
  }
  if (rank >= parts.size()) throw std::invalid_argument("a part is missing for the own rank");
  const std::byte* const own = block->part(parts[rank]);
  const std::lock_guard hold(mutex_);
  entries_.emplace_back(new Entry{id, std::move(block), std::move(parts), own});
  size_.store(entries_.size(), std::memory_order_relaxed);
}

void SymmetricMemory::remove(std::uint64_t id) {
  const std::lock_guard hold(mutex_);
  std::erase_if(entries_, [id](const auto& entry) { return entry->id == id; });
  size_.store(entries_.size(), std::memory_order_relaxed);
}

std::optional<SymmetricMemory::Place> SymmetricMemory::find(const std::byte* memory,
                                                            std::uint64_t bytes) const {
  if (is_empty()) return std::nullopt;
  const std::lock_guard hold(mutex_);
  for (const auto& entry : entries_) {
    if (memory < entry->own || memory >= entry->own + entry->block->bytes()) continue;
    const auto offset = static_cast<std::uint64_t>(memory - entry->own);
    if (bytes > entry->block->bytes() - offset) return std::nullopt;
    return Place{entry->block.get(), entry->parts.data(), entry->id, offset};
  }
  return std::nullopt;
}

}  // namespace transports
