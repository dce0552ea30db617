// One-sided calls: where the arrays of all ranks are, and the steps that reach into them.
#include <algorithm>
#include <cstring>

#include "engine.hpp"

namespace transports {
namespace {

// Of a value that goes to more than two places, how much at a time; a multiple of every element's
// size.
constexpr std::uint64_t kBlock = 16 * 1024;

void show(Whereabouts& shown, const std::optional<SymmetricMemory::Place>& place) {
  shown.block.store(place ? place->id : 0, std::memory_order_relaxed);
  shown.offset.store(place ? place->offset : 0, std::memory_order_relaxed);
}

std::uint64_t digest(const std::optional<SymmetricMemory::Place>& place) {
  if (!place) return 0;
  return (place->id ^ (place->offset * 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu;
}

}  // namespace

void Engine::locate(const Call& call, const std::byte* input, const std::byte* output) {
  if (!call.reaches_inputs() && !call.reaches_outputs() && !located_) return;
  std::optional<SymmetricMemory::Place> x, out;
  if (call.reaches_inputs()) x = symmetric_.find(input, call.widest_input());
  if (call.reaches_outputs()) out = symmetric_.find(output, call.widest_output());
  if (call.reaches_inputs() > x.has_value() || call.reaches_outputs() > out.has_value()) {
    // Other ranks may be in the call already.
    waiter_.fail(FailureKind::mismatch,
                 "rank " + std::to_string(rank()) + " has " + call.text() + " #" +
                     std::to_string(number_) +
                     " on an array that does not lie in symmetric memory of all ranks");
  }
  for (std::uint32_t peer = 0; peer < peer_inputs_.size(); ++peer) {
    if (x) peer_inputs_[peer] = x->at(peer);
    if (out) peer_outputs_[peer] = out->at(peer);
  }
  // Where they lie is part of what all must agree on, before anybody reaches anywhere.
  stamp_ ^= digest(x) ^ (digest(out) << 1 | digest(out) >> 63);
  auto& standing = region_.standing(rank());
  show(standing.input, x);
  show(standing.output, out);
  located_ = x.has_value() || out.has_value();
}

void Engine::reach(const Call& call, const Call::Step& step, const std::byte* input,
                   std::byte* output) {
  const Reach* const peeks = call.reaches() + step.peeks_begin;
  const Reach* const pokes = call.reaches() + step.pokes_begin;
  const std::uint32_t peek_count = step.pokes_begin - step.peeks_begin;
  const std::uint32_t poke_count = step.reaches_end - step.pokes_begin;
  for (auto* item = call.items() + step.items_begin; item != call.items() + step.items_end;
       ++item) {
    if (item->length == 0) continue;
    const std::uint64_t* const offsets = call.offsets() + item->reaches;
    const std::byte* const own = own_operand(*item, 0, input, output, scratch_.get());
    for (std::uint32_t i = 0; i < peek_count; ++i) {
      operands_[i + (own != nullptr && i >= step.own_at)] = at_peer(peeks[i]) + offsets[i];
    }
    if (own != nullptr) operands_[step.own_at] = own;
    std::size_t results = 0;
    std::byte* const kept = kept_at(*item, 0, output, scratch_.get());
    if (kept != nullptr) results_[results++] = kept;
    for (std::uint32_t i = 0; i < poke_count; ++i) {
      results_[results++] = at_peer(pokes[i]) + offsets[peek_count + i];
    }
    if (results == 0) continue;
    const bool past_caches =
        call.streams() && !in_place(call, input, output) && item->write != Space::scratch;
    fold(call, peek_count + (own != nullptr), results, item->length, past_caches);
  }
}

void Engine::fold(const Call& call, std::size_t operands, std::size_t results, std::uint64_t length,
                  bool past_caches) {
  const auto fold_block = [&](std::byte* out, std::byte* also, std::uint64_t at,
                              std::uint64_t bytes, Stores stores) {
    for (std::size_t i = 0; i < operands; ++i) block_operands_[i] = operands_[i] + at;
    if (operands == 1) return copy_to_both(out, also, block_operands_[0], bytes, {stores});
    call.reduce()(out, also, block_operands_.data(), operands, bytes / call.item_bytes(), {stores});
  };
  if (results <= 2) {
    std::byte* const also = results > 1 ? results_[1] : nullptr;
    return fold_block(results_[0], also, 0, length,
                      past_caches ? Stores::both_past_caches : Stores::cached);
  }
  // The first two are written from registers, the rest from the first, which is in the innermost
  // cache still; of what goes past the caches, all from a block that stays there.
  alignas(kLine) std::byte held[kBlock];
  for (std::uint64_t at = 0; at < length; at += kBlock) {
    const std::uint64_t bytes = std::min(kBlock, length - at);
    std::byte* const first = past_caches ? held : results_[0] + at;
    fold_block(first, past_caches ? nullptr : results_[1] + at, at, bytes, Stores::cached);
    const Manner manner{past_caches ? Stores::both_past_caches : Stores::cached};
    for (std::size_t i = past_caches ? 0 : 2; i < results; i += 2) {
      std::byte* const also = i + 1 < results ? results_[i + 1] + at : nullptr;
      copy_to_both(results_[i] + at, also, first, bytes, manner);
    }
  }
}

}  // namespace transports
