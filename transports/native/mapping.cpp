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

}  // namespace

Mapping::Mapping(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw std::system_error(errno, std::generic_category(), "fstat");
  size_ = static_cast<std::size_t>(status.st_size);
  constexpr int kBoth = PROT_READ | PROT_WRITE;
  if (size_ < kHugePage) {
    data_ = checked(::mmap(nullptr, size_, kBoth, MAP_SHARED, fd, 0));
    return;
  }
  // The file begins where a huge page may: room is taken for one more, and what is left given back.
  const std::size_t taken = size_ + kHugePage;
  std::byte* const room = checked(
      ::mmap(nullptr, taken, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  const std::size_t before =
      (kHugePage - reinterpret_cast<std::uintptr_t>(room) % kHugePage) % kHugePage;
  try {
    data_ = checked(::mmap(room + before, size_, kBoth, MAP_SHARED | MAP_FIXED, fd, 0));
  } catch (...) {
    ::munmap(room, taken);
    throw;
  }
  const std::size_t page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t used = (size_ + page - 1) / page * page;
  if (before != 0) ::munmap(room, before);
  if (used < taken - before) ::munmap(data_ + used, taken - before - used);
}

Mapping::~Mapping() {
  ::munmap(data_, size_);
}

void take_huge_pages(int fd) {
  const Mapping mapping(fd);
  const std::size_t whole = mapping.size() / kHugePage * kHugePage;
  // Nothing is put together where there is nothing at all; of one small page each the rest is
  // filled, which takes a fifth of what it takes to put together those that are there.
  for (std::size_t at = 0; at < whole; at += kHugePage) {
    if (::posix_fallocate(fd, static_cast<off_t>(at), 1) != 0) return;
  }
  if (whole != 0) ::madvise(mapping.data(), whole, MADV_COLLAPSE);
}

}  // namespace transports
