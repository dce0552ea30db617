#include "program.hpp"

#include <algorithm>
#include <stdexcept>

#include "region.hpp"

namespace transports {
namespace {

[[noreturn]] void refuse(const std::string& text) {
  throw std::invalid_argument(text);
}

void check_below(const std::vector<std::uint32_t>& numbers, std::uint32_t limit, const char* what) {
  for (const auto number : numbers) {
    if (number >= limit) {
      refuse(std::string(what) + " must be below " + std::to_string(limit) + ", found " +
             std::to_string(number));
    }
  }
}

std::uint64_t fnv1a(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// Bytes of a chunk in one pass, so that the widest message fits in a slot.
std::uint64_t segment_bytes(std::size_t slot_bytes, std::size_t item_bytes, std::uint32_t widest) {
  std::uint64_t items = slot_bytes / item_bytes / widest;
  // Segments that begin on a cache line as long as there is room for one.
  const std::uint64_t per_line = kLine / std::min<std::size_t>(kLine, item_bytes);
  if (items > per_line) items -= items % per_line;
  if (items == 0) {
    refuse("a slot of " + std::to_string(slot_bytes) + " bytes cannot hold " +
           std::to_string(widest) + " elements of " + std::to_string(item_bytes) + " bytes");
  }
  return items * item_bytes;
}

// Where each chunk of a space begins; chunks that are not in the space have none.
using Begins = std::vector<std::optional<std::uint64_t>>;

std::uint64_t lay_out(const std::vector<std::uint32_t>& chunks,
                      const std::vector<std::uint64_t>& lengths, Begins& begins) {
  std::uint64_t at = 0;
  for (const auto chunk : chunks) {
    begins[chunk] = at;
    at += lengths[chunk];
  }
  return at;
}

}  // namespace

void Plan::check() const {
  if (size == 0 || rank >= size) refuse("a plan's rank must be below its size");
  if (widest == 0) refuse("a plan's widest message has at least one chunk");
  check_below(inputs, chunk_count, "input chunk");
  check_below(outputs, chunk_count, "output chunk");
  check_below(scratch, chunk_count, "scratch chunk");
  if (is_one_sided() && (peer_inputs.size() != size || peer_outputs.size() != size)) {
    refuse("a one-sided plan says of every rank what lies in its input and output");
  }
  for (const auto space : remote) {
    if (space != Space::input && space != Space::output) refuse("a remote space is 1 or 2");
  }
  for (const auto* peers : {&peer_inputs, &peer_outputs}) {
    for (const auto& chunks : *peers) check_below(chunks, chunk_count, "chunk of a peer");
  }
  for (const auto& each : instructions) {
    check_below(each.chunks, chunk_count, "chunk");
    check_below(each.sources, size, "source");
    check_below(each.targets, size, "target");
    for (const auto& list : {each.sources, each.targets}) {
      if (std::find(list.begin(), list.end(), rank) != list.end()) {
        refuse("a rank cannot message itself");
      }
    }
    const bool only_tells = each.chunks.empty();  // notify and wait: messages without chunks
    for (const auto& list : {each.peeks, each.pokes}) {
      for (const auto& reach : list) {
        if (reach.peer >= size || reach.peer == rank ||
            (reach.space != Space::input && reach.space != Space::output) || !is_one_sided()) {
          refuse("a one-sided plan reaches into the input or output of other ranks");
        }
      }
    }
    if (only_tells && (!each.reads.empty() || !each.writes.empty() || !each.peeks.empty() ||
                       !each.pokes.empty() || each.sources.empty() == each.targets.empty())) {
      refuse("an instruction without chunks notifies or waits, and nothing else");
    }
    if (only_tells) continue;
    if (is_one_sided() && (!each.sources.empty() || !each.targets.empty())) {
      refuse("the messages of a one-sided plan have no chunks");
    }
    if (each.chunks.size() > std::max<std::size_t>(widest, outputs.size())) {
      refuse("an instruction moves between 1 and `widest` chunks");
    }
    if ((!each.sources.empty() || !each.targets.empty()) && each.chunks.size() > widest) {
      refuse("a message is wider than the plan says");
    }
    if (!each.reads.empty() && each.reads.size() != each.chunks.size()) {
      refuse("an instruction reads all of its chunks or none");
    }
    if (!each.writes.empty() && each.writes.size() != each.chunks.size()) {
      refuse("an instruction writes all of its chunks or none");
    }
    if (each.sources.empty() && each.peeks.empty() && each.reads.empty())
      refuse("an instruction needs an operand");
    if (each.sources.size() + each.peeks.size() > 1 && each.reads.empty()) {
      refuse("an instruction with several sources reads the own value too");
    }
    if (each.own_at > each.sources.size() + each.peeks.size())
      refuse("own_at is beyond the sources");
  }
  if (delays.empty()) return;
  if (delays.size() != instructions.size() || !std::is_sorted(delays.begin(), delays.end())) {
    refuse("there is a delay for each instruction, and none is less than the one before");
  }
  if (in_flight == 0 || is_one_sided() || !scratch.empty()) {
    refuse("passes that overlap have messages on their way and nothing in scratch");
  }
}

Call::Call(Plan plan, std::vector<std::uint64_t> lengths, std::size_t item_bytes,
           std::optional<Reduction> reduction, std::size_t slot_bytes, std::uint32_t in_flight,
           std::uint64_t cache_bytes, std::string text)
    : in_place_(plan.inputs == plan.outputs),
      is_one_sided_(plan.is_one_sided()),
      item_bytes_(item_bytes),
      slot_bytes_(slot_bytes),
      size_(plan.size),
      rank_(plan.rank),
      fingerprint_(fnv1a(text)),
      text_(std::move(text)) {
  plan.check();
  if (lengths.size() != plan.chunk_count) {
    refuse("expected " + std::to_string(plan.chunk_count) + " chunk lengths, found " +
           std::to_string(lengths.size()));
  }
  if (item_bytes == 0) refuse("an element has at least one byte");
  if (reduction) {
    if (size_of(reduction->dtype) != item_bytes) refuse("element size and dtype do not agree");
    reduce_ = reduce_kernel(reduction->dtype, reduction->op);
    if (reduce_ == nullptr) refuse("no kernel for this dtype and operation");
    if (reduction->average) divide_ = divide_kernel(reduction->dtype);
  }
  for (auto& length : lengths) length *= item_bytes;
  const std::uint64_t longest =
      lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  segment_ = plan.is_one_sided() ? std::max<std::uint64_t>(longest, 1)  // no slot bounds it
                                 : segment_bytes(slot_bytes, item_bytes, plan.widest);
  passes_ = std::max<std::uint64_t>(1, (longest + segment_ - 1) / segment_);
  const bool overlaps = passes_ > 1 && !plan.delays.empty() && in_flight >= plan.in_flight;
  if (overlaps) in_flight_ = plan.in_flight;

  Begins inputs(plan.chunk_count), outputs(plan.chunk_count), scratch(plan.chunk_count);
  input_bytes_ = lay_out(plan.inputs, lengths, inputs);
  output_bytes_ = lay_out(plan.outputs, lengths, outputs);
  for (const auto chunk : plan.scratch) {
    scratch[chunk] = scratch_bytes_;
    scratch_bytes_ += segment_;  // scratch holds one pass at a time
  }
  // Three quarters: something of a cache that others use too is always theirs.
  streams_ = (input_bytes_ + output_bytes_) * plan.size > cache_bytes / 4 * 3;
  for (const auto chunk : plan.outputs) outputs_.push_back({*outputs[chunk], lengths[chunk]});

  const auto find = [&](const Place& place) -> std::uint64_t {
    const Begins* begins = place.space == Space::input    ? &inputs
                           : place.space == Space::output ? &outputs
                                                          : &scratch;
    if (place.chunk >= plan.chunk_count || !(*begins)[place.chunk]) {
      refuse("a place names a chunk that its space does not hold");
    }
    return *(*begins)[place.chunk];
  };
  std::vector<Begins> peer_inputs(plan.peer_inputs.size()), peer_outputs(plan.peer_outputs.size());
  for (std::size_t peer = 0; peer < peer_inputs.size(); ++peer) {
    peer_inputs[peer].resize(plan.chunk_count);
    peer_outputs[peer].resize(plan.chunk_count);
    widest_input_ =
        std::max(widest_input_, lay_out(plan.peer_inputs[peer], lengths, peer_inputs[peer]));
    widest_output_ =
        std::max(widest_output_, lay_out(plan.peer_outputs[peer], lengths, peer_outputs[peer]));
  }
  for (const auto space : plan.remote) {
    (space == Space::input ? reaches_inputs_ : reaches_outputs_) = true;
  }
  const auto offset_at_peer = [&](const Reach& reach, std::uint32_t chunk) {
    const auto& begins = (reach.space == Space::input ? peer_inputs : peer_outputs)[reach.peer];
    if (!begins[chunk] || !(reach.space == Space::input ? reaches_inputs_ : reaches_outputs_)) {
      refuse("a plan reaches for a chunk where the peer does not hold it");
    }
    return *begins[chunk];
  };
  for (const auto& each : plan.instructions) {
    Step step{};
    step.items_begin = static_cast<std::uint32_t>(items_.size());
    for (std::size_t i = 0; i < each.chunks.size(); ++i) {
      Item item{lengths[each.chunks[i]], 0, 0, Space::nowhere, Space::nowhere, 0};
      item.reaches = static_cast<std::uint32_t>(offsets_.size());
      for (const auto* reaches : {&each.peeks, &each.pokes}) {
        for (const auto& reach : *reaches) {
          offsets_.push_back(offset_at_peer(reach, each.chunks[i]));
        }
      }
      if (!each.reads.empty()) {
        item.read = each.reads[i].space;
        item.read_at = find(each.reads[i]);
        if (lengths[each.reads[i].chunk] != item.length) {
          refuse("a copy between chunks of different lengths");
        }
      }
      if (!each.writes.empty() && each.writes[i].space != Space::nowhere) {
        item.write = each.writes[i].space;
        item.write_at = find(each.writes[i]);
      }
      step.bytes += item.length;
      items_.push_back(item);
    }
    step.items_end = static_cast<std::uint32_t>(items_.size());
    step.sources_begin = static_cast<std::uint32_t>(peers_.size());
    peers_.insert(peers_.end(), each.sources.begin(), each.sources.end());
    step.sources_end = step.targets_begin = static_cast<std::uint32_t>(peers_.size());
    peers_.insert(peers_.end(), each.targets.begin(), each.targets.end());
    step.targets_end = static_cast<std::uint32_t>(peers_.size());
    step.peeks_begin = static_cast<std::uint32_t>(reaches_.size());
    reaches_.insert(reaches_.end(), each.peeks.begin(), each.peeks.end());
    step.pokes_begin = static_cast<std::uint32_t>(reaches_.size());
    reaches_.insert(reaches_.end(), each.pokes.begin(), each.pokes.end());
    step.reaches_end = static_cast<std::uint32_t>(reaches_.size());
    step.own_at = each.own_at;
    step.delay = overlaps ? plan.delays[steps_.size()] : 0;
    const bool reduces = each.sources.size() + each.peeks.size() > 0 && !each.reads.empty();
    if (reduces && reduce_ == nullptr) refuse("a plan that reduces needs an operation");
    steps_.push_back(step);
  }
  std::vector<bool> is_heard(size_);
  for (const auto& step : steps_) {
    if (step.sources_begin != step.targets_end) longest_ = std::max(longest_, step.bytes);
    for (auto i = step.sources_begin; i < step.sources_end; ++i) is_heard[peers_[i]] = true;
  }
  for (std::uint32_t peer = 0; peer < size_; ++peer) {
    if (peer != rank_ && !is_heard[peer]) silent_peers_.push_back(peer);
  }
  weaves_ = overlaps && streams_ && steps_.size() <= kMostWoven;
  for (std::size_t i = 0; weaves_ && i < steps_.size(); ++i) {
    weaves_ = steps_[i].items_end - steps_[i].items_begin == 1;
    // Those of other delays work on other passes.
    for (std::size_t j = i; weaves_ && j-- > 0 && steps_[j].delay == steps_[i].delay;) {
      weaves_ = are_independent(steps_[j], steps_[i]);
    }
  }
  find_lenders(in_flight);
}

void Call::set_reached(const Call& call, std::optional<std::uint32_t> root, bool meets_to_try) {
  const bool is_same = call.rank() == rank_ && call.size() == size_ &&
                       call.input_bytes() == input_bytes_ && call.output_bytes() == output_bytes_ &&
                       call.in_place() == in_place_;
  if (is_one_sided() || !is_same || !call.is_one_sided() || call.scratch_bytes() != 0) {
    refuse("expected the same call by a one-sided plan without scratch");
  }
  const std::size_t begin = root ? call.begin_around(*root) : call.begin_among_all();
  if (begin == 0)
    refuse("expected a plan that begins with a meeting of all, or of all with the root");
  reached_ = &call;
  reached_root_ = root;
  reached_begin_ = begin;
  meets_to_try_ = meets_to_try;
}

std::size_t Call::begin_among_all() const {
  const auto tells = [](const Step& step) { return step.targets_end - step.targets_begin; };
  const auto hears = [](const Step& step) { return step.sources_end - step.sources_begin; };
  const bool is_meeting = steps_.size() >= 2 && tells(steps_[0]) == size_ - 1 &&
                          hears(steps_[0]) == 0 && hears(steps_[1]) == size_ - 1;
  return is_meeting ? 2 : 0;
}

std::size_t Call::begin_around(std::uint32_t root) const {
  if (rank_ != root) {
    const auto is_root = [&](std::uint32_t peer) { return peer == root; };
    const bool is_between_two =
        std::all_of(peers_.begin(), peers_.end(), is_root) &&
        std::all_of(reaches_.begin(), reaches_.end(),
                    [&](const Reach& reach) { return is_root(reach.peer); });
    if (!is_between_two) return 0;
  }
  // What a step does that moves nothing: tells or hears all that it has to do with, or else.
  enum class Does { tells_all, hears_all, else_ };
  const std::uint32_t all = rank_ == root ? size_ - 1 : 1;
  const auto does = [&](std::size_t i) {
    if (i >= steps_.size() || steps_[i].bytes != 0) return Does::else_;
    const auto told = steps_[i].targets_end - steps_[i].targets_begin;
    const auto heard = steps_[i].sources_end - steps_[i].sources_begin;
    return told == all && heard == 0   ? Does::tells_all
           : told == 0 && heard == all ? Does::hears_all
                                       : Does::else_;
  };
  const Does first = rank_ == root ? Does::hears_all : Does::tells_all;
  const Does last = rank_ == root ? Does::tells_all : Does::hears_all;
  if (does(0) == first) return does(1) == last ? 2 : 0;
  // What the root would hear next was told in answer, or before: it cannot be known.
  return does(0) == last && does(1) != first ? 1 : 0;
}

void Call::find_lenders(std::uint32_t in_flight) {
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    Step& step = steps_[i];
    if (step.targets_begin == step.targets_end || step.items_end - step.items_begin != 1) continue;
    const Item& item = items_[step.items_begin];
    // What comes from others, or is made with it, where it is kept; the own as it is, which is not
    // written in every call.
    step.lends_kept = step.sources_begin != step.sources_end;
    const Space space = step.lends_kept ? item.write : item.read;
    const std::uint64_t at = step.lends_kept ? item.write_at : item.read_at;
    // No rank waits that would hardly otherwise: whoever it is lent to has to be in the call
    // anyway, or the message fills all slots.
    const bool are_awaited =
        (in_flight != 0 && step.bytes >= slot_bytes_ * in_flight) ||
        std::all_of(peers_.begin() + step.targets_begin, peers_.begin() + step.targets_end,
                    [&](std::uint32_t peer) {
                      return std::count(silent_peers_.begin(), silent_peers_.end(), peer) == 0;
                    });
    if (space != Space::input && space != Space::output) continue;
    // What average divides at the end is written once more.
    step.stays = divide_ == nullptr || space == Space::input;
    step.lends_apart = step.stays && divide_ != nullptr && in_place_;
    for (std::size_t j = i + 1; step.stays && j < steps_.size(); ++j) {
      for (auto k = steps_[j].items_begin; k < steps_[j].items_end; ++k) {
        if (items_[k].write != Space::output || items_[k].write_at != at) continue;
        if (space == Space::output) step.stays = false;
        if (in_place_) step.lends_apart = true;
      }
    }
    step.lends = step.stays && are_awaited;
  }
}

bool Call::are_independent(const Step& one, const Step& other) const {
  const Item& a = items_[one.items_begin];
  const Item& b = items_[other.items_begin];
  // Chunks lie apart or are the same; input and output may be the same memory.
  const auto same = [this](Space space, std::uint64_t at, Space other_space,
                           std::uint64_t other_at) {
    return space != Space::nowhere && other_space != Space::nowhere && at == other_at &&
           (space == other_space || in_place_);
  };
  return !same(a.write, a.write_at, b.read, b.read_at) &&
         !same(a.write, a.write_at, b.write, b.write_at) &&
         !same(a.read, a.read_at, b.write, b.write_at);
}

}  // namespace transports
