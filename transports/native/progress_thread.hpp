// A thread that moves operations on while the user's threads compute.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>

namespace transports {

class ProgressThread {
 public:
  // What a step found: something to do, only operations that wait for a peer, or none at all.
  enum class Found { work, waiting, nothing };

  // `step` must not throw. The thread is started by the first ring().
  explicit ProgressThread(std::function<Found()> step) : step_(std::move(step)) {}
  ~ProgressThread() { stop(); }
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

  // There may be something to do again. One caller at a time.
  void ring();
  // Waits for the step under way. No ring() may follow.
  void stop();
  // In a child after fork: the thread did not come along.
  void forget();

 private:
  void run();

  std::function<Found()> step_;
  std::atomic<std::uint32_t> bell_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace transports
