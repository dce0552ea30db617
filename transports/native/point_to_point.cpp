#include "point_to_point.hpp"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

namespace transports {
namespace {

std::string size_text(const What& what, std::uint64_t bytes) {
  return what.text() + " (" + std::to_string(bytes) + " bytes)";
}

}  // namespace

PointToPoint::PointToPoint(const Region& region, const Waiter& waiter)
    : region_(region),
      waiter_(waiter),
      process_(getpid()),
      have_left_(region.geometry().ranks),
      matching_(region.geometry().ranks),
      thread_([this] { return step_in_background(); }) {
  for (std::uint32_t peer = 0; peer < ranks(); ++peer) {
    outboxes_.push_back(Outbox{OutgoingLane(region, waiter, peer), {}, {}, {}, {}});
    inboxes_.push_back(Inbox{IncomingLane(region, waiter, peer), {}});
  }
}

PointToPoint::Handle PointToPoint::post_send(const std::byte* from, std::uint64_t bytes,
                                             std::int32_t dest, std::int32_t tag, What what,
                                             Caller caller) {
  if (dest < 0 || static_cast<std::uint32_t>(dest) >= ranks()) {
    throw std::invalid_argument("dest: expected 0.." + std::to_string(ranks() - 1) + ", found " +
                                std::to_string(dest));
  }
  if (tag < 0) {
    throw std::invalid_argument("tag: expected 0 or more, found " + std::to_string(tag));
  }
  auto send = std::make_shared<Operation>(this, from, bytes, dest, tag, what);
  refuse_in_child();
  const Hold hold(*this);
  check_usable();
  if (static_cast<std::uint32_t>(dest) == rank()) {
    send_to_self(*send);
  } else {
    outboxes_[dest].heads.push_back(send);
    pending_.fetch_add(1, std::memory_order_relaxed);
  }
  begin(send, caller);
  return send;
}

PointToPoint::Handle PointToPoint::post_receive(std::byte* to, std::uint64_t bytes,
                                                std::int32_t source, std::int32_t tag, What what,
                                                Caller caller) {
  if (source < kAny || source >= static_cast<std::int32_t>(ranks())) {
    throw std::invalid_argument("source: expected 0.." + std::to_string(ranks() - 1) +
                                " or -1 for any, found " + std::to_string(source));
  }
  if (tag < kAny) {
    throw std::invalid_argument("tag: expected 0 or more, or -1 for any, found " +
                                std::to_string(tag));
  }
  auto receive = std::make_shared<Operation>(this, to, bytes, source, tag, what);
  refuse_in_child();
  const Hold hold(*this);
  check_usable();
  pending_.fetch_add(1, std::memory_order_relaxed);
  if (const auto arrival = matching_.find_arrival(*receive)) {
    if (accept(receive, arrival->packet, arrival->source)) {
      if (arrival->packet.kind == PacketKind::announcement) {
        await_fragments(receive, arrival->packet, arrival->source);
      } else {
        if (bytes != 0) std::memcpy(to, arrival->payload.get(), bytes);
        finish(*receive);
      }
    }
  } else {
    matching_.post(receive);
  }
  begin(receive, caller);
  return receive;
}

// Before any lock: the child of a fork has a copy of it that nobody may ever give back.
void PointToPoint::refuse_in_child() const {
  if (getpid() == process_) return;
  throw Failure(FailureKind::misuse,
                "this process was forked from rank " + std::to_string(rank()) +
                    " and is no rank itself: messages belong to the process that called init");
}

void PointToPoint::check_usable() const {
  if (closed_) throw Failure(FailureKind::misuse, "the communicator is closed");
  if (broken_) {
    waiter_.tell_of_trouble();
    throw *broken_;
  }
  waiter_.look_at_trouble();
}

void PointToPoint::begin(const Handle& operation, Caller caller) {
  // Only what goes out: incoming lanes are looked at by who waits.
  const std::int32_t peer = operation->peer;
  if (peer != kAny && !broken_) push(static_cast<std::uint32_t>(peer));
  if (operation->is_done()) return;
  if (!is_moving_) show_moving();
  if (caller == Caller::waits_later) thread_.ring();
}

bool PointToPoint::progress() {
  if (broken_ || closed_) return false;
  bool moved = false;
  for (std::uint32_t peer = 0; peer < ranks(); ++peer) {
    if (peer == rank()) continue;
    moved |= drain(peer);
    if (broken_) return true;
    moved |= push(peer);
  }
  if (is_moving_) show_moving();
  return moved;
}

void PointToPoint::show_moving() {
  is_moving_ = false;
  for (std::uint32_t peer = 0; peer < ranks() && !is_moving_; ++peer) {
    if (have_left_[peer]) continue;
    const auto& outbox = outboxes_[peer];
    // A long message that has found its receive counts from then to its last byte: so the receiver
    // speaks for all of the way, clear and fragments.
    is_moving_ = !outbox.clears.empty() || !outbox.heads.empty() || !outbox.streams.empty() ||
                 !inboxes_[peer].streams.empty();
  }
  // Release: whoever sees that nothing is on its way finds in the lanes what was put there.
  region_.standing(rank()).is_moving.store(is_moving_, std::memory_order_release);
}

bool PointToPoint::drain(std::uint32_t peer) {
  auto& lane = inboxes_[peer].lane;
  // As many as a lane holds, then it is another peer's turn.
  std::uint32_t taken = 0;
  for (Packet packet; taken < region_.geometry().lane_slots && lane.take(packet); ++taken) {
    act_on(packet, peer);
    if (broken_) return true;
    lane.release();
  }
  return taken != 0;
}

// Everything in a packet may be wrong: it is checked here, before it is used.
void PointToPoint::act_on(const Packet& packet, std::uint32_t source) {
  const std::uint64_t slot_bytes = region_.geometry().lane_bytes;
  auto& outbox = outboxes_[source];
  switch (packet.kind) {
    case PacketKind::whole:
      if (packet.bytes > slot_bytes || packet.tag < 0) break;
      return arrive(packet, source);
    case PacketKind::announcement:
      if (packet.bytes <= slot_bytes || packet.tag < 0) break;
      return arrive(packet, source);
    case PacketKind::clear:
      if (auto node = outbox.announced.extract(packet.message)) {
        outbox.streams.push_back(std::move(node.mapped()));
        if (!is_moving_) show_moving();
        return;
      }
      break;
    case PacketKind::fragment:
      if (inboxes_[source].streams.contains(packet.message)) return take_fragment(packet, source);
      break;
  }
  give_up(FailureKind::mismatch, waiter_.name_of(source) + " posted a damaged message");
}

void PointToPoint::arrive(const Packet& packet, std::uint32_t source) {
  const auto& lane = inboxes_[source].lane;
  const bool is_whole = packet.kind == PacketKind::whole;
  if (const auto receive = matching_.find_receive(source, packet.tag)) {
    if (!accept(receive, packet, source)) return;
    if (!is_whole) return await_fragments(receive, packet, source);
    lane.copy(packet, packet.bytes, receive->to);
    return finish(*receive);
  }
  Arrival arrival{source, packet, nullptr};
  if (is_whole && packet.bytes != 0) {
    arrival.payload = std::make_unique_for_overwrite<std::byte[]>(packet.bytes);
    lane.copy(packet, packet.bytes, arrival.payload.get());
  }
  matching_.keep(std::move(arrival));
}

bool PointToPoint::accept(const Handle& receive, const Packet& packet, std::uint32_t source) {
  receive->peer = static_cast<std::int32_t>(source);
  receive->tag = packet.tag;
  const bool alike =
      receive->what == packet.what || receive->what.is_empty() || packet.what.is_empty();
  if (receive->bytes == packet.bytes && alike) return true;
  give_up(FailureKind::mismatch, "point-to-point with tag " + std::to_string(packet.tag) +
                                     ": rank " + std::to_string(source) + " sends " +
                                     size_text(packet.what, packet.bytes) + ", rank " +
                                     std::to_string(rank()) + " receives " +
                                     size_text(receive->what, receive->bytes));
  fail(*receive, *broken_);  // in no queue any more
  return false;
}

void PointToPoint::await_fragments(const Handle& receive, const Packet& packet,
                                   std::uint32_t source) {
  if (!inboxes_[source].streams.emplace(packet.message, receive).second) {
    give_up(FailureKind::mismatch, waiter_.name_of(source) + " posted a damaged message");
    return fail(*receive, *broken_);
  }
  outboxes_[source].clears.push_back(packet.message);
  // Before the announcement is released: at no time does the message seem to lie still.
  if (!is_moving_) show_moving();
}

void PointToPoint::take_fragment(const Packet& packet, std::uint32_t source) {
  auto& inbox = inboxes_[source];
  const auto stream = inbox.streams.find(packet.message);
  auto& receive = *stream->second;
  // The length follows from what has come before: nothing of it is the peer's to say.
  const auto length = std::min(region_.geometry().lane_bytes, receive.bytes - receive.moved);
  inbox.lane.copy(packet, length, receive.to + receive.moved);
  receive.moved += length;
  if (receive.moved != receive.bytes) return;
  finish(receive);
  inbox.streams.erase(stream);
}

bool PointToPoint::push(std::uint32_t peer) {
  auto& outbox = outboxes_[peer];
  std::uint32_t posted = 0;
  // As many as a lane holds, however fast the peer takes them: incoming lanes want their turn.
  for (; posted < region_.geometry().lane_slots; ++posted) {
    if (outbox.clears.empty() && outbox.heads.empty() && outbox.streams.empty()) break;
    if (!outbox.lane.has_room()) break;
    if (!outbox.clears.empty()) {
      Packet packet{PacketKind::clear};
      packet.message = outbox.clears.front();
      outbox.lane.post(packet, nullptr, 0);
      outbox.clears.pop_front();
    } else if (outbox.heads.empty() || (outbox.streams_turn && !outbox.streams.empty())) {
      push_fragment(outbox);
      outbox.streams_turn = false;
    } else {
      push_head(outbox);
      outbox.streams_turn = true;
    }
  }
  return posted != 0;
}

void PointToPoint::push_head(Outbox& outbox) {
  const Handle send = std::move(outbox.heads.front());
  outbox.heads.pop_front();
  Packet packet{PacketKind::whole, 0, send->tag, send->bytes, send->what};
  if (send->bytes <= region_.geometry().lane_bytes) {
    outbox.lane.post(packet, send->from, send->bytes);
    return finish(*send);
  }
  packet.kind = PacketKind::announcement;
  packet.message = send->message = outbox.messages++;
  outbox.announced.emplace(packet.message, send);
  outbox.lane.post(packet, nullptr, 0);
}

void PointToPoint::push_fragment(Outbox& outbox) {
  Handle send = std::move(outbox.streams.front());
  outbox.streams.pop_front();
  Packet packet{PacketKind::fragment};
  packet.message = send->message;
  const auto length = std::min(region_.geometry().lane_bytes, send->bytes - send->moved);
  packet.bytes = length;
  outbox.lane.post(packet, send->from + send->moved, length);
  send->moved += length;
  if (send->moved == send->bytes) return finish(*send);
  outbox.streams.push_back(std::move(send));
}

void PointToPoint::send_to_self(Operation& send) {
  const Packet packet{PacketKind::whole, 0, send.tag, send.bytes, send.what};
  // Kept whole whatever its length, so that a send to oneself before the receive returns.
  const bool is_wanted = deliver(packet, rank(), send.from, Kept::last);
  pending_.fetch_add(1, std::memory_order_relaxed);
  if (!is_wanted) return fail(send, *broken_);
  finish(send);
}

bool PointToPoint::deliver(const Packet& packet, std::uint32_t source, const std::byte* from,
                           Kept kept) {
  if (const auto receive = matching_.find_receive(source, packet.tag)) {
    if (!accept(receive, packet, source)) return false;
    if (packet.bytes != 0) std::memcpy(receive->to, from, packet.bytes);
    finish(*receive);
    return true;
  }
  Arrival arrival{source, packet, nullptr};
  if (packet.bytes != 0) {
    arrival.payload = std::make_unique_for_overwrite<std::byte[]>(packet.bytes);
    std::memcpy(arrival.payload.get(), from, packet.bytes);
  }
  if (kept == Kept::first) {
    matching_.keep_first(std::move(arrival));
  } else {
    matching_.keep(std::move(arrival));
  }
  return true;
}

void PointToPoint::withdraw(const Handle& receive) {
  check_owner(*receive);
  if (getpid() != process_) return;
  const Hold hold(*this);
  if (broken_ || closed_) return;  // it has failed
  const auto source = static_cast<std::uint32_t>(receive->peer);
  if (matching_.withdraw(*receive)) {
    fail(*receive, Failure(FailureKind::misuse, "the receive was withdrawn"));
  } else if (receive->is_done()) {
    const Packet packet{PacketKind::whole, 0, receive->tag, receive->bytes, receive->what};
    deliver(packet, source, receive->to, Kept::first);
  } else {
    give_up(FailureKind::aborted,
            "rank " + std::to_string(rank()) + " was interrupted while it received " +
                size_text(receive->what, receive->bytes) + " with tag " +
                std::to_string(receive->tag) + " from rank " + std::to_string(source));
  }
}

void PointToPoint::finish(Operation& operation) {
  // Release: what was received is there for whoever sees that it is complete.
  operation.state.store(Operation::State::complete, std::memory_order_release);
  pending_.fetch_sub(1, std::memory_order_relaxed);
}

void PointToPoint::fail(Operation& operation, const Failure& failure) {
  operation.failure_kind = failure.kind();
  operation.failure = failure.what();
  // Release: kind and text are complete.
  operation.state.store(Operation::State::failed, std::memory_order_release);
  pending_.fetch_sub(1, std::memory_order_relaxed);
}

void PointToPoint::give_up(FailureKind kind, const std::string& text) {
  Failure failure(kind, text);
  if (!waiter_.report(kind, text)) {
    if (const auto first = waiter_.trouble()) failure = *first;
  }
  break_off(failure);
}

void PointToPoint::break_off(const Failure& failure) {
  if (broken_) return;
  broken_ = failure;
  for (const auto& receive : matching_.clear()) fail(*receive, failure);
  for (auto& inbox : inboxes_) {
    for (const auto& [message, receive] : inbox.streams) fail(*receive, failure);
    inbox.streams.clear();
  }
  for (auto& outbox : outboxes_) {
    for (const auto& send : outbox.heads) fail(*send, failure);
    for (const auto& send : outbox.streams) fail(*send, failure);
    for (const auto& [message, send] : outbox.announced) fail(*send, failure);
    outbox.heads.clear();
    outbox.streams.clear();
    outbox.announced.clear();
  }
}

void PointToPoint::close() {
  if (getpid() != process_) {  // forked: lock and thread are the parent's
    thread_.forget();
    return;
  }
  {
    const Hold hold(*this);
    if (closed_) return;
    closed_ = true;
    break_off(Failure(FailureKind::misuse, "the communicator was closed before the message moved"));
  }
  thread_.stop();
}

ProgressThread::Found PointToPoint::step_in_background() {
  using Found = ProgressThread::Found;
  if (pending_.load(std::memory_order_relaxed) == 0) return Found::nothing;
  if (waiting_.load(std::memory_order_relaxed) != 0) return Found::waiting;
  try {
    return try_progress() ? Found::work : Found::waiting;
  } catch (const std::bad_alloc&) {
    return Found::waiting;  // the packet stays where it is; a user's thread will say so
  }
}

}  // namespace transports
