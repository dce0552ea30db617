#include "frames.hpp"

#include <algorithm>

namespace transports {
namespace {

constexpr auto relaxed = std::memory_order_relaxed;

template <std::size_t Words>
void copy_out(const SharedText<Words>& text, std::uint64_t (&to)[Words]) {
  for (std::size_t i = 0; i < Words; ++i) to[i] = text.words[i].load(relaxed);
}

template <std::size_t Words>
void copy_in(const std::uint64_t (&from)[Words], SharedText<Words>& text) {
  for (std::size_t i = 0; i < Words; ++i) text.words[i].store(from[i], relaxed);
}

}  // namespace

StandingImage StandingImage::of(const Standing& standing) {
  StandingImage image{};
  image.life = standing.life.load(relaxed);
  // Acquire, the last first: with a number come the text and the stamp of its call.
  image.completed = standing.completed.load(std::memory_order_acquire);
  image.entered = standing.entered.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < kStamps; ++i) {
    image.stamps[i] = standing.stamps[i].load(std::memory_order_acquire);
  }
  // Stamps are of the calls up to a number only while that stands.
  if (standing.entered.load(relaxed) != image.entered) std::fill_n(image.stamps, kStamps, 0);
  image.call_changes = standing.call_changes.load(relaxed);
  copy_out(standing.call, image.call);
  copy_out(standing.in_message.what, image.message);
  image.is_background = standing.is_background.load(relaxed);
  image.in_queue = standing.in_queue.load(relaxed);
  image.queued = standing.queued.load(relaxed);
  image.is_moving = standing.is_moving.load(relaxed);
  image.whom_in_call = standing.in_call.whom.load(relaxed);
  image.whom_in_message = standing.in_message.whom.load(relaxed);
  return image;
}

void StandingImage::show(Standing& standing) const {
  // Several ranks of a host may be told at once, and of different moments. Who comes second leaves
  // it: another image comes soon, or what matters of it is kept by who was told.
  if (standing.is_written.exchange(1, std::memory_order_acquire) != 0) return;
  const bool is_later =
      entered >= standing.entered.load(relaxed) && completed >= standing.completed.load(relaxed);
  if (is_later) write(standing);
  standing.is_written.store(0, std::memory_order_release);
}

void StandingImage::write(Standing& standing) const {
  // No stamp stands beside a number that it is not of.
  for (auto& stamp : standing.stamps) stamp.store(0, relaxed);
  copy_in(call, standing.call);
  copy_in(message, standing.in_message.what);
  standing.is_background.store(is_background, relaxed);
  standing.in_queue.store(in_queue, relaxed);
  standing.queued.store(queued, relaxed);
  standing.is_moving.store(is_moving, relaxed);
  standing.in_call.whom.store(whom_in_call, relaxed);
  standing.in_message.whom.store(whom_in_message, relaxed);
  standing.call_changes.store(call_changes, relaxed);
  // Release: the text is there, and no older stamp, for whoever sees the number.
  standing.entered.store(entered, std::memory_order_release);
  for (std::size_t i = 0; i < kStamps; ++i) {
    standing.stamps[i].store(stamps[i], std::memory_order_release);
  }
  standing.completed.store(completed, std::memory_order_release);
}

}  // namespace transports
