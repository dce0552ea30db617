// Owns a mapping of shared memory.
#pragma once

#include <cstddef>

namespace transports {

class Mapping {
 public:
  // Maps all of the file, readable and writable; the descriptor stays the caller's. Throws
  // std::system_error.
  explicit Mapping(int fd);
  // Of the file so many bytes, from a multiple of the size of a huge page on.
  Mapping(int fd, std::size_t begin, std::size_t size);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Fills an empty file of shared memory with huge pages, as far as it is as long and there are some:
// whoever maps it needs few entries of the processor's translation cache.
void take_huge_pages(int fd) noexcept;

}  // namespace transports
