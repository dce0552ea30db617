#include "ending.hpp"

#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <optional>
#include <sstream>

namespace transports {
namespace {

// Of linux/pidfd.h, which older systems do not have: what Linux tells since 6.15 of a process that
// has been waited for.
struct PidfdInfo {
  std::uint64_t mask;
  std::uint64_t cgroupid;
  std::uint32_t ids[11];
  std::int32_t exit_code;
};
static_assert(sizeof(PidfdInfo) == 64);
constexpr unsigned long kGetInfo = _IOWR(0xFF, 11, PidfdInfo);
constexpr std::uint64_t kInfoExit = 1u << 3;

constexpr int kTries = 20;
constexpr timespec kBetween{0, 2'000'000};

std::optional<int> status_of_a_reaped_one(int pidfd) {
  PidfdInfo info{};
  info.mask = kInfoExit;
  if (::ioctl(pidfd, kGetInfo, &info) != 0 || (info.mask & kInfoExit) == 0) return std::nullopt;
  return info.exit_code;
}

std::optional<int> status_of_a_zombie(int pidfd, std::uint32_t pid) {
  // It may end while it is read: then a stream says so, where its buffer would throw.
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  char content[1024];
  file.read(content, sizeof content);
  const std::string line(content, static_cast<std::size_t>(file.gcount()));
  const auto end = line.rfind(')');  // of the name, which may hold anything
  if (end == std::string::npos || end + 2 >= line.size() || line[end + 2] != 'Z') {
    return std::nullopt;
  }
  const auto last = line.find_last_of(' ');
  std::istringstream words(line.substr(last));
  int status = 0;
  if (!(words >> status)) return std::nullopt;
  // Nobody has waited for it yet, so the number was its own while we read.
  if (::syscall(SYS_pidfd_send_signal, pidfd, 0, nullptr, 0) != 0) return std::nullopt;
  return status;
}

std::string signal_name(int number) {
  switch (number) {
    case SIGABRT:
      return "SIGABRT";
    case SIGBUS:
      return "SIGBUS";
    case SIGFPE:
      return "SIGFPE";
    case SIGHUP:
      return "SIGHUP";
    case SIGILL:
      return "SIGILL";
    case SIGINT:
      return "SIGINT";
    case SIGKILL:
      return "SIGKILL, which the kernel sends too when memory runs out";
    case SIGSEGV:
      return "SIGSEGV";
    case SIGTERM:
      return "SIGTERM";
    default:
      return "signal " + std::to_string(number);
  }
}

std::string described(int status) {
  if (WIFSIGNALED(status)) {
    return " (killed by " + signal_name(WTERMSIG(status)) + ")";
  }
  return " (exit code " + std::to_string(WEXITSTATUS(status)) + ")";
}

}  // namespace

std::string ending_of(int pidfd, std::uint32_t pid) {
  if (pidfd < 0) return "";
  for (int i = 0; i < kTries; ++i) {
    if (const auto status = status_of_a_zombie(pidfd, pid)) return described(*status);
    if (const auto status = status_of_a_reaped_one(pidfd)) return described(*status);
    ::nanosleep(&kBetween, nullptr);
  }
  return "";
}

}  // namespace transports
