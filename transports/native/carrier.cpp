#include "carrier.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <utility>

#include "futex.hpp"
#include "waiting.hpp"

namespace transports {
namespace {

constexpr std::size_t kRooms = 16;
constexpr std::chrono::microseconds kLongestNap{4000};
// A program that has just waited may wait again at once: the thread would only be in its way.
constexpr std::int64_t kRecentNs = 200'000;
constexpr std::int64_t kSeenToNs = 2'000'000;

Region attached(const Mapping& mapping, std::uint32_t rank, std::size_t ranks) {
  const Region region = Region::attach(mapping.data(), mapping.size());
  if (region.geometry().ranks != ranks || rank >= ranks) {
    throw std::invalid_argument("the region is one of " + std::to_string(region.geometry().ranks) +
                                " ranks, expected " + std::to_string(ranks));
  }
  return region;
}

}  // namespace

Carrier::Carrier(int fd, std::uint32_t rank, const MpiFunctions& mpi,
                 std::vector<std::int32_t> places, std::vector<std::uint32_t> hosts,
                 std::int32_t tag)
    : mapping_(std::make_unique<Mapping>(fd)),
      region_(attached(*mapping_, rank, places.size())),
      rank_(rank),
      mpi_(mpi),
      places_(std::move(places)),
      tag_(tag),
      process_(getpid()),
      peers_(places_.size()),
      thread_([this] { return step_in_background(); }, kLongestNap) {
  if (hosts.size() != places_.size()) throw std::invalid_argument("a host for each rank");
  for (std::uint32_t peer = 0; peer < peers_.size(); ++peer) {
    if (hosts[peer] == hosts[rank]) continue;
    remote_.push_back(peer);
    peers_[peer].is_remote = true;
    peers_[peer].places = std::make_unique<Place[]>(region_.geometry().depth);
    peers_[peer].is_leader =
        std::find(hosts.begin(), hosts.begin() + peer, hosts[peer]) == hosts.begin() + peer;
    auto& standing = region_.standing(peer);
    // Whoever moves a counter on which it may wait looks for sleepers, and so comes to ring().
    standing.sleepers.store(1, std::memory_order_relaxed);
    standing.expedited.store(1, std::memory_order_relaxed);
    standing.life.store(static_cast<std::uint32_t>(Life::running), std::memory_order_release);
  }
  const std::scoped_lock hold(mutex_);
  for (std::size_t i = 0; i < kRooms; ++i) {
    Room& room = rooms_.emplace_back(Room{{}, std::make_unique<std::byte[]>(kFrameBytes)});
    check(mpi_.recv_init(room.bytes.get(), kFrameBytes, mpi_.byte, mpi_.any_source, tag_,
                         mpi_.communicator, &room.request),
          "MPI_Recv_init");
    check(mpi_.start(&room.request), "MPI_Start");
  }
  if (is_broken_) {
    let_go_of_rooms();
    throw std::runtime_error("MPI takes no receives");
  }
  thread_.ring();
}

Carrier::~Carrier() {
  stop();
}

void Carrier::check(int code, const char* what) {
  if (code == 0 || is_broken_) return;
  char text[1024];  // the most any library's errors have, and what failed
  const int begun = std::snprintf(text, sizeof text, "%s failed: ", what);
  char said[1024] = "";
  int length = 0;
  mpi_.error_string(code, said, &length);
  std::snprintf(text + begun, sizeof text - static_cast<std::size_t>(begun), "%s", said);
  break_off(text);
}

// Allocates nothing: a lack of memory may be why.
void Carrier::break_off(const char* text) {
  if (is_broken_) return;
  is_broken_ = true;
  has_failed_.store(true, std::memory_order_relaxed);
  char whole[1280];
  std::snprintf(whole, sizeof whole, "rank %u cannot reach the ranks of other hosts: %s", rank_,
                text);
  region_.trouble().publish(static_cast<std::uint32_t>(FailureKind::peer_lost), rank_, whole);
}

template <class Work>
bool Carrier::guarded(const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    break_off("there is no memory for what is to be sent or has come");
    return false;
  }
}

bool Carrier::is_over(Request& request) {
  int flag = 0;
  MpiFunctions::Status status;
  check(mpi_.test(&request, &flag, &status), "MPI_Test");
  return flag != 0 && !is_broken_;  // one that has failed has brought nothing
}

// A rank announces its sleep, then looks at the counter; the counter is moved, then we look for
// sleepers. With full fences between, one of us sees the other.
void Carrier::wake_self(const std::atomic<std::uint32_t>& counter) const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (region_.standing(rank_).sleepers.load(std::memory_order_relaxed) != 0) {
    futex_wake(counter);
  }
}

void Carrier::ring(std::uint32_t peer) {
  if (getpid() != process_) return;
  // Release: what was posted is there for whoever takes the mark away.
  peers_[peer].is_rung.store(true, std::memory_order_release);
  is_rung_.store(true, std::memory_order_release);
  bool is_wanted = true;
  if (const std::unique_lock hold(mutex_, std::try_to_lock); hold.owns_lock()) {
    guarded([&] { return push(peer); });
    // What is short has gone, as a rule; a long payload goes only while somebody sees to it.
    is_wanted = partings_ != 0;
    if (is_wanted) is_under_way_.store(true, std::memory_order_relaxed);
  }  // else who has it may look no more
  if (is_wanted && watchers_.load(std::memory_order_relaxed) == 0) thread_.nudge();
}

void Carrier::end_watch() {
  watched_ns_.store(now_ns(), std::memory_order_relaxed);
  watchers_.fetch_sub(1, std::memory_order_relaxed);
}

bool Carrier::progress() {
  bool moved = false;
  do {
    const std::unique_lock hold(mutex_, std::try_to_lock);
    if (!hold.owns_lock()) return moved;
    moved |= guarded([this] { return step(); });
    // Somebody may have rung meanwhile, and gone away as we had the lock: with a fence on both
    // sides one of us sees the other.
  } while (is_rung_.load(std::memory_order_seq_cst) && !is_done());
  return moved;
}

bool Carrier::step() {
  is_rung_.store(false, std::memory_order_seq_cst);  // first: else progress() asks for ever
  if (is_broken_ || is_done()) return false;
  bool moved = receive();
  moved |= finish();
  const std::int64_t now = now_ns();
  untold_ = false;
  for (const auto peer : remote_) {
    if (peers_[peer].is_rung.exchange(false, std::memory_order_acquire)) moved |= push(peer);
    moved |= push_releases(peer, now);
  }
  push_trouble();
  if (now >= news_due_) push_news(now);
  if (is_closing_.load(std::memory_order_acquire)) leave();
  is_under_way_.store(!is_idle() || untold_, std::memory_order_relaxed);
  stepped_ns_.store(now, std::memory_order_relaxed);
  return moved;
}

bool Carrier::finish() {
  bool moved = false;
  std::erase_if(sendings_, [&](Sending& each) { return is_over(each.request); });
  for (std::size_t i = 0; i < arrivals_.size();) {
    Arrival& arrival = arrivals_[i];
    if (!is_over(arrival.request)) {
      ++i;
      continue;
    }
    publish(arrival.from, arrival.is_packet, arrival.index, arrival.words);
    --peers_[arrival.from].arrivals;
    std::swap(arrival, arrivals_.back());
    arrivals_.pop_back();
    moved = true;
  }
  for (const auto from : remote_) {
    Peer& peer = peers_[from];
    for (const bool is_packet : {false, true}) {
      auto& partings = (is_packet ? peer.packets : peer.messages).partings;
      bool parted = false;
      while (!partings.empty() && is_over(partings.front().request)) {
        partings.pop_front();
        --partings_;
        parted = true;
      }
      if (parted) show_releases(from, is_packet);
      if (parted && !is_packet) show_gone(from);
      moved |= parted;
    }
    // What it has said of our messages may be held back until MPI lets go of them.
    if (peer.says_it_has_left && peer.arrivals == 0 && peer.messages.partings.empty() &&
        peer.packets.partings.empty() && !has_left(from)) {
      region_.standing(from).life.store(static_cast<std::uint32_t>(Life::closed),
                                        std::memory_order_release);
      peer.has_left.store(true, std::memory_order_release);
    }
  }
  return moved;
}

void Carrier::close() {
  is_closing_.store(true, std::memory_order_release);
  if (getpid() != process_) return;
  progress();
  thread_.nudge();
}

void Carrier::leave() {
  if (!has_said_it_leaves_) {
    for (const auto peer : remote_) push(peer);
    if (partings_ != 0) return;  // the program may go away with its memory
    for (const auto peer : remote_) push_standing(peer, FrameKind::leave);
    has_said_it_leaves_ = true;
  }
  if (!is_idle()) return;
  if (std::all_of(remote_.begin(), remote_.end(), [this](auto peer) { return has_left(peer); })) {
    is_done_.store(true, std::memory_order_release);
  }
}

void Carrier::stop() {
  if (getpid() != process_) {  // the thread, and what MPI does, stayed behind
    thread_.forget();
    return;
  }
  thread_.stop();
  const std::scoped_lock hold(mutex_);
  is_done_.store(true, std::memory_order_release);
  let_go_of_rooms();
  // What MPI has not done with must stay where it is.
  for (Sending& sending : sendings_) sending.bytes.release();
  sendings_.clear();
  if (partings_ != 0 || !arrivals_.empty()) mapping_.release();
}

void Carrier::let_go_of_rooms() {
  for (Room& room : rooms_) {
    // Nobody sends here any more; where a library cannot cancel, the room must stay.
    int flag = 0;
    MpiFunctions::Status status;
    mpi_.cancel(&room.request);
    for (int tries = 0; tries < 100 && flag == 0; ++tries) mpi_.test(&room.request, &flag, &status);
    if (flag != 0) {
      mpi_.request_free(&room.request);
    } else {
      room.bytes.release();
    }
  }
  rooms_.clear();
}

ProgressThread::Found Carrier::step_in_background() {
  if (is_done()) return ProgressThread::Found::nothing;
  const auto soon = [this] {
    return is_under_way_.load(std::memory_order_relaxed) ? ProgressThread::Found::soon
                                                         : ProgressThread::Found::waiting;
  };
  // Who waits sees to it, unless he has to wait for Python meanwhile.
  const std::int64_t now = now_ns();
  const bool is_seen_to = watchers_.load(std::memory_order_relaxed) != 0 ||
                          now - watched_ns_.load(std::memory_order_relaxed) < kRecentNs;
  if (is_seen_to && now - stepped_ns_.load(std::memory_order_relaxed) < kSeenToNs) return soon();
  return progress() ? ProgressThread::Found::soon : soon();
}

}  // namespace transports
