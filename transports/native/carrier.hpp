// Carries what a rank tells the ranks of other hosts, and what they tell it, by MPI.
//
// Each host has a region with a part for every rank of the communicator. What a rank writes into
// its own part for a rank of another host, its carrier sends there; and the carrier of that rank
// writes it into the part that stands for the sender in its own host's region:
//
//     host A                                        host B
//     part of rank 0   -- carrier of 0 ==MPI==> carrier of 2 -->   part of rank 0
//     part of rank 2   <-- carrier of 0 <==MPI== carrier of 2 --   part of rank 2
//
// So engines and lanes know nothing of it: a message keeps its slot until its reader, wherever it
// is, has released it, and then both hosts' slots of that number are free.
//
// Who waits for a rank of another host moves things on by progress(); a thread does so while nobody
// waits. Nothing here waits for anything.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "frames.hpp"
#include "mapping.hpp"
#include "mpi_functions.hpp"
#include "progress_thread.hpp"
#include "region.hpp"

namespace transports {

class Carrier {
 public:
  // `places[r]` is the number of rank r in MPI's communicator; `hosts[r]` that of its host. Tags
  // `tag` and `tag` + 1 there are this communicator's alone. Throws std::runtime_error.
  Carrier(int fd, std::uint32_t rank, const MpiFunctions& mpi, std::vector<std::int32_t> places,
          std::vector<std::uint32_t> hosts, std::int32_t tag);
  ~Carrier();
  Carrier(const Carrier&) = delete;
  Carrier& operator=(const Carrier&) = delete;

  bool is_remote(std::uint32_t peer) const { return peers_[peer].is_remote; }
  // This rank has posted a message or a packet to a peer of another host, or released one of its.
  void ring(std::uint32_t peer);
  // Moves on what can be; false: nothing could.
  bool progress();
  // While one lives, the thread leaves it to who waits. Of no carrier: nothing.
  class Watch {
   public:
    explicit Watch(Carrier* carrier) : carrier_(carrier) {
      // Relaxed: a hint, nothing is ordered by it.
      if (carrier_ != nullptr) carrier_->watchers_.fetch_add(1, std::memory_order_relaxed);
    }
    ~Watch() {
      if (carrier_ != nullptr) carrier_->end_watch();
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Carrier* carrier_;
  };
  // Whether a peer of another host has closed, and all that it had posted before is here.
  bool has_left(std::uint32_t peer) const {
    // Acquire: so it is for whoever asks.
    return peers_[peer].has_left.load(std::memory_order_acquire);
  }

  // Of one that has: the number of the last call it has completed.
  std::uint64_t completed_by(std::uint32_t peer) const {
    return peers_[peer].completed.load(std::memory_order_relaxed);  // ordered by has_left()
  }

  // Shorter payloads go with what says so, from a copy.
  static constexpr std::uint64_t kLeastApart = kFramePayload + 1;
  // The payload of message `index` to that peer, which is about to be posted, lies there, and not
  // in its slot, until gone_to() has come to `index` + 1.
  void send_from(std::uint32_t peer, std::uint32_t index, const std::byte* place,
                 std::uint64_t bytes) {
    // Relaxed: posting it releases.
    place_of(peer, index).index.store(index, std::memory_order_relaxed);
    place_of(peer, index).bytes.store(bytes, std::memory_order_relaxed);
    place_of(peer, index).begin.store(place, std::memory_order_relaxed);
  }
  // How many of the messages to a peer of another host MPI has done with.
  const std::atomic<std::uint32_t>& gone_to(std::uint32_t peer) const { return peers_[peer].gone; }

  // This rank has closed: what it has posted is sent, then the others hear of it. Waits for nobody.
  void close();
  // Once all have: nothing will come any more, or go.
  bool is_done() const { return is_done_.load(std::memory_order_acquire); }
  // MPI has failed it: it moves nothing any more.
  bool is_broken() const { return has_failed_.load(std::memory_order_relaxed); }
  // Ends the thread; of requests that are under way nothing is known any more.
  void stop();
  // Bytes of messages, those in descriptors aside, that have gone to ranks of other hosts.
  std::uint64_t sent_payload() const { return sent_payload_.load(std::memory_order_relaxed); }

 private:
  using Request = MpiFunctions::Request;
  // A payload of ours on its way, from its slot.
  struct Parting {
    Request request;
    std::uint32_t index;
  };
  // A payload on its way to a slot here, and the descriptor that waits for it.
  struct Arrival {
    Request request;
    std::uint32_t from;
    bool is_packet;
    std::uint32_t index;
    std::uint32_t words[kFrameWords];
  };
  // Of a payload in no slot. Not in the region, where others could write.
  struct Place {
    std::atomic<const std::byte*> begin{nullptr};
    std::atomic<std::uint64_t> bytes{0};
    // Of the message: it is that one's alone, whatever something else has written to the region.
    std::atomic<std::uint32_t> index{0};
  };
  // Of one kind of channel, to and from a peer.
  struct Channel {
    std::uint32_t sent = 0;     // messages of ours that were carried
    std::uint32_t arrived = 0;  // messages of the peer's that have been announced
    std::uint32_t heard = 0;    // how many of ours it has released
    std::uint32_t told = 0;     // how many of its we have said that we have
    std::deque<Parting> partings;
  };
  struct Peer {
    bool is_remote = false;
    bool is_leader = false;  // of its host: it is told how this rank stands, for all of them
    std::uint32_t arrivals = 0;
    bool says_it_has_left = false;
    std::atomic<bool> has_left{false};
    std::atomic<std::uint64_t> completed{0};
    std::atomic<bool> is_rung{false};
    std::atomic<std::uint32_t> gone{0};
    // Where payloads lie that are in no slot, by the place of the message's descriptor.
    std::unique_ptr<Place[]> places;
    Channel messages, packets;
    std::uint32_t lane_place = 0, lane_arrived_place = 0;  // counts modulo the slots of a lane
    std::uint32_t call_told = 0;                           // which text of a call it knows
    std::int64_t untold_since = 0;                         // releases of its messages; 0: none
  };
  struct Room {
    Request request;
    std::unique_ptr<std::byte[]> bytes;
  };
  struct Sending {
    Request request;
    std::unique_ptr<std::byte[]> bytes;
  };

  Place& place_of(std::uint32_t peer, std::uint32_t index) {
    return peers_[peer].places[index & (region_.geometry().depth - 1)];
  }
  void show_gone(std::uint32_t to);
  bool is_within(const SlotPlace& place, std::uint64_t bytes) const {
    const auto& geometry = region_.geometry();
    return place.index < geometry.slots && place.shift < kLine && bytes <= geometry.slot_bytes;
  }
  void end_watch();
  // With the lock held.
  bool step();
  // What `work` says; a lack of memory breaks the carrier.
  template <class Work>
  bool guarded(const Work& work);
  bool receive();
  bool finish();
  void act(const Frame& frame, const std::byte* payload);
  void arrive(const Frame& frame, const std::byte* payload, bool is_packet);
  std::byte* room_for(const Frame& frame, bool is_packet);
  void publish(std::uint32_t from, bool is_packet, std::uint32_t index, const std::uint32_t* words);
  void hear_releases(std::uint32_t from, const Frame& frame);
  void show_releases(std::uint32_t from, bool is_packet);
  bool push(std::uint32_t to);
  bool push_message(std::uint32_t to);
  bool push_packet(std::uint32_t to);
  void push_payload(std::uint32_t to, Frame& frame, Channel& channel, const std::byte* payload,
                    std::uint64_t bytes);
  bool push_releases(std::uint32_t to, std::int64_t now);
  void push_standing(std::uint32_t to, FrameKind kind);
  void push_news(std::int64_t now);
  void push_trouble();
  void leave();
  Frame frame_for(std::uint32_t to, FrameKind kind);
  void send(std::uint32_t to, const Frame& frame, const std::byte* payload);
  bool is_over(Request& request);
  void check(int code, const char* what);
  void break_off(const char* text);
  void let_go_of_rooms();
  void wake_self(const std::atomic<std::uint32_t>& counter) const;
  bool is_idle() const { return sendings_.empty() && arrivals_.empty() && partings_ == 0; }
  ProgressThread::Found step_in_background();

  std::unique_ptr<Mapping> mapping_;
  Region region_;
  std::uint32_t rank_;
  MpiFunctions mpi_;
  std::vector<std::int32_t> places_;
  std::int32_t tag_;
  pid_t process_;
  std::vector<Peer> peers_;
  std::vector<std::uint32_t> remote_;  // the peers of other hosts

  std::mutex mutex_;
  std::vector<Room> rooms_;  // for frames to come, a ring that MPI fills in order
  std::size_t room_ = 0;
  std::vector<Sending> sendings_;
  std::vector<Arrival> arrivals_;
  std::uint32_t partings_ = 0;
  StandingImage told_{};
  std::int64_t news_due_ = 0;
  bool has_told_trouble_ = false;
  bool has_heard_trouble_ = false;  // of another host, which tells all
  bool has_said_it_leaves_ = false;
  bool is_broken_ = false;
  bool untold_ = false;                      // releases
  std::atomic<bool> has_failed_{false};      // is_broken_, for whoever asks
  std::atomic<bool> is_under_way_{false};    // something goes on only while somebody sees to it
  std::atomic<std::int64_t> stepped_ns_{0};  // when somebody last did
  std::atomic<bool> is_closing_{false};
  std::atomic<bool> is_done_{false};
  std::atomic<bool> is_rung_{false};
  std::atomic<std::uint32_t> watchers_{0};
  std::atomic<std::int64_t> watched_ns_{0};  // until when, last
  std::atomic<std::uint64_t> sent_payload_{0};
  ProgressThread thread_;
};

}  // namespace transports
