// A deadline for what nobody can be called back from: another library's call that holds the
// interpreter's lock and may never return.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace transports {

// While it lives, its thread says after `silence` seconds (0: never) what is waited for, and after
// `timeout` ends the process, since nothing less would.
class Deadline {
 public:
  Deadline(double silence, double timeout, std::string what);
  ~Deadline() { end(); }
  // What was watched has ended; twice does nothing.
  void end();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;

 private:
  void watch(double silence, double timeout);
  void say(double waited, const char* end) const;

  const std::string what_;
  std::mutex mutex_;
  std::condition_variable over_;
  bool is_over_ = false;
  std::thread thread_;
};

}  // namespace transports
