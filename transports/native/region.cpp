#include "region.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace transports {
namespace {

constexpr char kMagic[8] = {'c', 'o', 'l', 'l', 'e', 'c', 't', '\0'};

// One load, which the compiler may not do again: what is checked is what is used, whoever writes
// there meanwhile. Relaxed, since nothing else is read by its leave: the header was complete before
// its descriptor was handed out.
template <class T>
T read_once(const T& place) {
  return __atomic_load_n(&place, __ATOMIC_RELAXED);
}

Geometry read_once(const Geometry& place) {
  return {.ranks = read_once(place.ranks),
          .depth = read_once(place.depth),
          .slots = read_once(place.slots),
          .slot_bytes = read_once(place.slot_bytes),
          .lane_slots = read_once(place.lane_slots),
          .lane_bytes = read_once(place.lane_bytes)};
}

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

bool TroubleBoard::publish(std::uint32_t kind, std::uint32_t reporter, std::string_view text) {
  std::uint32_t expected = none;
  if (!state.compare_exchange_strong(expected, writing, std::memory_order_relaxed)) return false;
  this->kind.store(kind, std::memory_order_relaxed);
  this->reporter.store(reporter, std::memory_order_relaxed);
  this->text.set(text);
  // Release: kind, reporter and text are complete for whoever sees `published`.
  state.store(published, std::memory_order_release);
  return true;
}

const char* Geometry::fault() const {
  if (ranks == 0 || !is_ring_length(depth) || !is_ring_length(slots) || lane_slots < 2) {
    return "expected ranks >= 1, depth and slots a power of two from 2 on, and lane slots >= 2";
  }
  if (slots > kMostSlots) return "at most 8388608 slots";
  for (const std::uint64_t each : {slot_bytes, lane_bytes}) {
    if (each == 0 || each % kLine != 0 || each > kMostSlotBytes) {
      return "a slot is a positive multiple of 64 bytes, at most 1 GiB";
    }
  }
  return nullptr;
}

bool Geometry::fits(std::size_t bytes) const {
  // Each part by itself first: then no product below passes 2^64, and the whole may be reckoned.
  const std::uint64_t each = bytes / ranks;  // of a rank
  return depth <= each / sizeof(Descriptor) / ranks && slots <= each / slot_stride() &&
         lane_slots <= each / (sizeof(LaneDescriptor) + lane_bytes) / ranks &&
         ranks <= each / sizeof(AckLine) && part_bytes() <= each && total_bytes() <= bytes;
}

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
  const std::uint32_t version = read_once(header.version);
  if (version != kLayoutVersion) {
    throw std::runtime_error("the shared memory has layout version " + std::to_string(version) +
                             ", expected " + std::to_string(kLayoutVersion) +
                             ": the ranks run different versions of this package");
  }
  const Geometry geometry = read_once(header.geometry);
  if (geometry.fault() != nullptr || !geometry.fits(bytes)) {
    throw std::runtime_error("the shared memory's header does not fit its size");
  }
  return Region(base, geometry);
}

}  // namespace transports
