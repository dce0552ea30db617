#include "region.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace transports {
namespace {

constexpr char kMagic[8] = {'c', 'o', 'l', 'l', 'e', 'c', 't', '\0'};

}  // namespace

template <std::size_t Words>
void SharedText<Words>::set(std::string_view text) {
  for (std::size_t word = 0; word < Words; ++word) {
    std::uint64_t packed = 0;
    const std::size_t begin = word * sizeof packed;
    if (begin < text.size()) {
      std::memcpy(&packed, text.data() + begin, std::min(sizeof packed, text.size() - begin));
    }
    words[word].store(packed, std::memory_order_relaxed);
    if (packed == 0) break;  // the reader stops here too
  }
}

template <std::size_t Words>
std::size_t SharedText<Words>::get(char* out) const {
  for (std::size_t word = 0; word < Words; ++word) {
    const std::uint64_t packed = words[word].load(std::memory_order_relaxed);
    std::memcpy(out + word * sizeof packed, &packed, sizeof packed);
  }
  const void* end = std::memchr(out, 0, Words * sizeof(std::uint64_t));
  return end ? static_cast<const char*>(end) - out : Words * sizeof(std::uint64_t);
}

template struct SharedText<12>;
template struct SharedText<24>;
template struct SharedText<1024>;

void Region::format(std::byte* base, const Geometry& geometry) {
  auto& header = *reinterpret_cast<Header*>(base);
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kLayoutVersion;
  header.geometry = geometry;
}

Region Region::attach(std::byte* base, std::size_t bytes) {
  const auto& header = *reinterpret_cast<const Header*>(base);
  if (bytes < sizeof(Header) || std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) {
    throw std::runtime_error("the shared memory was not formatted by this package");
  }
  if (header.version != kLayoutVersion) {
    throw std::runtime_error(
        "the shared memory has layout version " + std::to_string(header.version) + ", expected " +
        std::to_string(kLayoutVersion) + ": the ranks run different versions of this package");
  }
  const Geometry geometry = header.geometry;  // copied once: what peers write later does not count
  if (geometry.ranks == 0 || !is_ring_length(geometry.depth) || !is_ring_length(geometry.slots) ||
      geometry.lane_slots < 2 || geometry.total_bytes() > bytes) {
    throw std::runtime_error("the shared memory's header does not fit its size");
  }
  return Region(base, geometry);
}

}  // namespace transports
