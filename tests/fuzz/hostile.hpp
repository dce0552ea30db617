// Another process of the same user, which writes into the region whatever the fuzzer says and
// whenever the victim waits: every look at the clock, yield or sleep of the victim is its turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "region.hpp"

namespace fuzzing {

// The fuzzer's bytes, one after the other; zeros once they are used up.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  bool is_empty() const { return at_ == end_; }
  template <class T>
  T next() {
    T value{};
    take(&value, sizeof value);
    return value;
  }
  std::uint32_t below(std::uint32_t limit) { return next<std::uint8_t>() % limit; }
  void take(void* to, std::size_t bytes) {
    const std::size_t left = static_cast<std::size_t>(end_ - at_);
    const std::size_t taken = bytes < left ? bytes : left;
    if (taken != 0) std::memcpy(to, at_, taken);
    at_ += taken;
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

class Hostile {
 public:
  Hostile(Bytes& bytes, std::byte* base, const transports::Geometry& geometry, std::uint32_t victim)
      : bytes_(bytes),
        base_(base),
        size_(geometry.total_bytes()),
        region_(base, geometry),
        victim_(victim) {}

  // A few writes of the fuzzer's choice.
  void strike();
  // The same, after some turns that it lets pass.
  void take_turn();

 private:
  std::uint32_t peer();
  // Small, or near what is expected, or anything.
  std::uint32_t counter(std::uint32_t expected);
  // What a message of the victim's running call must show: its stamp, and its length all together.
  std::uint64_t likely_fingerprint(std::uint64_t bytes) const;
  void write_anywhere();
  void write_message();
  void write_ack();
  void write_standing();
  void write_packet();
  void write_lane_ack();
  void write_trouble();

  Bytes& bytes_;
  std::byte* base_;
  std::size_t size_;
  transports::Region region_;
  std::uint32_t victim_;
  std::uint32_t turns_to_skip_ = 0;
  std::uint32_t messages_[8] = {}, packets_[8] = {};  // posted as each rank
};

}  // namespace fuzzing
