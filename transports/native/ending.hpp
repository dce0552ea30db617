// How a process ended, as far as the kernel tells one who is not its parent.
#pragma once

#include <cstdint>
#include <string>

namespace transports {

// " (killed by SIGSEGV)", " (exit code 3)", or nothing where it cannot be known. The
// process has ended. Waits some milliseconds at most, for its parent to have taken note of it.
std::string ending_of(int pidfd, std::uint32_t pid);

}  // namespace transports
