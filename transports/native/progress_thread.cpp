#include "progress_thread.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <system_error>

#include "futex.hpp"

namespace transports {
namespace {

using std::chrono::microseconds;

// It never spins: the cores are the user's. After the last operation it naps on for a while, so
// that a program that posts one after the other need not wake it each time.
constexpr microseconds kShortestNap{50};
constexpr int kIdleNaps = 50;

// A thread takes over the mask of the one that starts it. Signals are for the user's threads.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

}  // namespace

void ProgressThread::ring() {
  if (!thread_.joinable()) {
    const SignalsBlocked blocked;
    try {
      thread_ = std::thread([this] { run(); });
    } catch (const std::system_error&) {
      return;  // no thread to be had: operations move on whenever the user waits or tests
    }
  }
  // Release: the thread sees what there is to do once it sees the new count.
  bell_.fetch_add(1, std::memory_order_release);
  bell_.notify_one();
}

void ProgressThread::stop() {
  if (!thread_.joinable()) return;
  stopping_.store(true, std::memory_order_relaxed);
  bell_.fetch_add(1, std::memory_order_release);  // with it, `stopping_` is seen
  bell_.notify_one();
  nudge();
  thread_.join();
}

void ProgressThread::forget() {
  // Neither joined nor detached: either would touch a thread that does not exist here.
  std::construct_at(&thread_);
}

void ProgressThread::nudge() {
  // Relaxed: who naps a little longer has only napped a little longer.
  if (is_napping_.exchange(0, std::memory_order_relaxed) != 0) futex_wake(is_napping_);
}

void ProgressThread::nap(microseconds time) {
  is_napping_.store(1, std::memory_order_relaxed);
  futex_sleep(is_napping_, 1, time);
  is_napping_.store(0, std::memory_order_relaxed);
}

void ProgressThread::run() {
  // Known by it when the threads are counted that could act, see transports/acting.py.
  pthread_setname_np(pthread_self(), "collectives-msg");
  auto pause = kShortestNap;
  int idle_naps = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    // Read before the step: what is posted after the step looked changes it.
    const std::uint32_t heard = bell_.load(std::memory_order_acquire);
    switch (step_()) {
      case Found::work:
        pause = kShortestNap;
        idle_naps = 0;
        std::this_thread::yield();
        break;
      case Found::soon:
        pause = kShortestNap;
        idle_naps = 0;
        nap(pause);
        break;
      case Found::waiting:
        idle_naps = 0;
        nap(pause);
        pause = std::min(2 * pause, longest_nap_);
        break;
      case Found::nothing:
        if (++idle_naps <= kIdleNaps) {
          nap(longest_nap_);
        } else {
          bell_.wait(heard, std::memory_order_acquire);
          pause = kShortestNap;
          idle_naps = 0;
        }
        break;
    }
  }
}

}  // namespace transports
