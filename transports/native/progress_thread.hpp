// A thread that moves operations on while the user's threads compute.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

namespace transports {

class ProgressThread {
 public:
  // What a step found: something to do, something that is to be looked at again soon, only
  // operations that wait for a peer, or none at all.
  enum class Found { work, soon, waiting, nothing };

  static constexpr std::chrono::microseconds kLongestNap{1000};

  // `step` must not throw. The thread is started by the first ring().
  explicit ProgressThread(std::function<Found()> step,
                          std::chrono::microseconds longest_nap = kLongestNap)
      : step_(std::move(step)), longest_nap_(longest_nap) {}
  ~ProgressThread() { stop(); }
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

  // There may be something to do again. One caller at a time.
  void ring();
  // Wakes the thread if it naps. Any number of callers.
  void nudge();
  // Waits for the step under way. No ring() may follow.
  void stop();
  // In a child after fork: the thread did not come along.
  void forget();

 private:
  void run();
  void nap(std::chrono::microseconds time);

  std::function<Found()> step_;
  const std::chrono::microseconds longest_nap_;
  std::atomic<std::uint32_t> is_napping_{0};  // a futex: a child of fork can let go of it
  std::atomic<std::uint32_t> bell_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace transports
