#include "mapping.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1; headers may be older than the kernel
#endif

namespace transports {
namespace {

// Of most processors, and the least that pays: what a line of the table of tables maps.
constexpr std::size_t kHugePage = 2 * 1024 * 1024;

std::byte* checked(void* mapped) {
  if (mapped == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  return static_cast<std::byte*>(mapped);
}

std::size_t size_of(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw std::system_error(errno, std::generic_category(), "fstat");
  return static_cast<std::size_t>(status.st_size);
}

}  // namespace

Mapping::Mapping(int fd) : Mapping(fd, 0, size_of(fd)) {}

Mapping::Mapping(int fd, std::size_t begin, std::size_t size) : size_(size) {
  constexpr int kBoth = PROT_READ | PROT_WRITE;
  const auto at = static_cast<off_t>(begin);
  if (size_ < kHugePage) {
    data_ = checked(::mmap(nullptr, size_, kBoth, MAP_SHARED, fd, at));
    return;
  }
  // It begins where a huge page may: room is taken for one more, and what is left given back.
  const std::size_t taken = size_ + kHugePage;
  std::byte* const room = checked(
      ::mmap(nullptr, taken, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  const std::size_t before =
      (kHugePage - reinterpret_cast<std::uintptr_t>(room) % kHugePage) % kHugePage;
  // Should this fail, what was there may be another's already, and stays.
  data_ = checked(::mmap(room + before, size_, kBoth, MAP_SHARED | MAP_FIXED, fd, at));
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t used = (size_ + page - 1) / page * page;
  if (before != 0) ::munmap(room, before);
  if (used < taken - before) ::munmap(data_ + used, taken - before - used);
}

Mapping::~Mapping() {
  ::munmap(data_, size_);
}

void take_huge_pages(int fd) noexcept {
  try {
    const std::size_t size = size_of(fd);
    for (std::size_t at = 0; at + kHugePage <= size; at += kHugePage) {
      // Nothing is put together where there is nothing at all; of one small page the rest is
      // filled, which takes a fifth of what it takes to put together those that are there.
      if (::posix_fallocate(fd, static_cast<off_t>(at), 1) != 0) return;
      const Mapping window(fd, at, kHugePage);
      if (::madvise(window.data(), kHugePage, MADV_COLLAPSE) != 0) return;
    }
  } catch (const std::system_error&) {
    // Small pages serve as well.
  }
}

}  // namespace transports
