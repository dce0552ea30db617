#include "deadline.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "waiting.hpp"

namespace transports {

Deadline::Deadline(double silence, double timeout, std::string what) : what_(std::move(what)) {
  thread_ = std::thread([this, silence, timeout] { watch(silence, timeout); });
}

void Deadline::end() {
  if (!thread_.joinable()) return;
  {
    const std::scoped_lock hold(mutex_);
    is_over_ = true;
  }
  over_.notify_one();
  thread_.join();
}

void Deadline::say(double waited, const char* end) const {
  const std::string text =
      "collectives: " + what_ + " has lasted " + seconds_text(waited) + " s" + end + "\n";
  // Not by Python, whose lock is held.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text.data(), text.size());
}

void Deadline::watch(double silence, double timeout) {
  std::unique_lock hold(mutex_);
  const auto lasts = [&](double seconds) {
    // No clock counts beyond that.
    const std::chrono::duration<double> bounded(std::min(seconds, 1e8));
    return !over_.wait_for(hold, bounded, [this] { return is_over_; });
  };
  double waited = 0;
  if (silence > 0 && silence < timeout) {
    if (!lasts(silence)) return;
    waited = silence;
    say(waited, "");
  }
  if (!lasts(timeout - waited)) return;
  say(timeout, ", the most it may: this rank ends");
  ::_exit(1);
}

}  // namespace transports
