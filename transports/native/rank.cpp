#include "rank.hpp"

#include <unistd.h>

#include <optional>
#include <stdexcept>
#include <utility>

#include "buffer.hpp"
#include "outside.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

// Up to here a call that finds its peers waiting has ended before letting go of the interpreter's
// lock and taking it again would have paid.
constexpr std::uint64_t kQuickBytes = 64 * 1024;

// Signal handlers of Python run while a rank waits; only the main thread has any.
void check_signals() {
  if (gettid() != getpid()) return;  // and needs no lock to find out
  const nb::gil_scoped_acquire hold;
  if (PyErr_CheckSignals() != 0) throw Interrupted();
}

// Whether two arrays are the very same memory, laid out alike, or have nothing in common.
bool may_run_on(const Call& call, const std::byte* input, std::uint64_t read,
                const std::byte* output, std::uint64_t written) {
  if (read == 0 || written == 0 || input + read <= output || output + written <= input) return true;
  // The very same memory, laid out alike; or nothing of it is read, or nothing written.
  return input == output &&
         (call.in_place() || call.input_bytes() == 0 || call.output_bytes() == 0);
}

void refuse_overlap(const Call& call, const std::byte* input, const std::byte* output) {
  if (may_run_on(call, input, call.input_bytes(), output, call.output_bytes())) return;
  throw std::invalid_argument(
      "x and out overlap: expected the very same memory (out=x) or none in common, found " +
      std::to_string(call.input_bytes()) + " bytes of x at offset " +
      std::to_string(input - output) + " of " + std::to_string(call.output_bytes()) +
      " bytes of out");
}

Region attach(const Mapping& mapping, std::uint32_t rank, std::size_t peers) {
  const Region region = Region::attach(mapping.data(), mapping.size());
  if (rank >= region.geometry().ranks) throw std::invalid_argument("no such rank");
  // The header is anybody's to write, and every peer is looked up in the region.
  if (peers != region.geometry().ranks) {
    throw std::invalid_argument("the shared memory is one of " +
                                std::to_string(region.geometry().ranks) + " ranks, expected " +
                                std::to_string(peers));
  }
  return region;
}

std::vector<Waiter::Peer> named(const Rank::Peers& peers) {
  std::vector<Waiter::Peer> found;
  for (const auto& [host, pid, pidfd] : peers) found.push_back({host, pid, pidfd});
  return found;
}

}  // namespace

Rank::Rank(int fd, std::uint32_t rank, const Peers& peers, bool crowded,
           std::shared_ptr<Carrier> carrier)
    : mapping_(fd),
      carrier_(std::move(carrier)),
      engine_(attach(mapping_, rank, peers.size()), rank, named(peers), crowded) {
  engine_.waiter().set_carrier(carrier_.get());
  engine_.waiter().set_interrupt(check_signals);
}

Rank::~Rank() {
  engine_.close();
  // It lives on until what was posted has arrived.
  if (carrier_ != nullptr && !engine_.is_forsaken()) carrier_->close();
}

namespace {

// Lets go of the interpreter's lock at once, or once a wait turns slow.
class Unlocking {
 public:
  OnceSlow once_slow() { return {release, &outside_}; }
  void now() { release(&outside_); }

 private:
  static void release(void* with) {
    auto& outside = *static_cast<std::optional<Outside>*>(with);
    if (!outside) outside.emplace();
  }

  std::optional<Outside> outside_;
};

}  // namespace

bool Rank::next_is(const Call& call, double timeout) {
  Unlocking unlocking;
  return engine_.next_is(call, timeout, unlocking.once_slow());
}

void Rank::run(const Call& call, const std::byte* input, std::byte* output, double timeout,
               bool background, bool& stay_in_use) {
  Unlocking unlocking;
  const bool is_quick = !background && call.input_bytes() + call.output_bytes() <= kQuickBytes;
  if (!is_quick && !engine_.is_closed()) unlocking.now();  // closed: see outside.hpp
  std::optional<Unheard> unheard;
  if (background) unheard.emplace();
  engine_.execute(call, input, output, timeout, background, unlocking.once_slow(), &stay_in_use);
}

template <class Work>
void Rank::keeping(nb::handle input, nb::handle owner, const Work& work) {
  bool stay_in_use = false;
  try {
    work(stay_in_use);
  } catch (...) {
    if (stay_in_use) {  // never let go
      input.inc_ref();
      owner.inc_ref();
    }
    throw;
  }
}

void Rank::execute(const Call& call, nb::handle input, nb::handle output, double timeout,
                   bool background, nb::handle owner, nb::handle input_owner) {
  const Buffer from(input, call.input_bytes(), Buffer::Access::read, "input");
  const Buffer to(output, call.output_bytes(), Buffer::Access::write, "output");
  refuse_overlap(call, from.data(), to.data());
  keeping(input_owner.is_none() ? input : input_owner, owner.is_none() ? output : owner,
          [&](bool& stay_in_use) {
            run(call, from.data(), to.data(), timeout, background, stay_in_use);
          });
}

bool Rank::repeat(const KnownCalls::Ask& ask) {
  if (queued_.load(std::memory_order_relaxed) != 0) return false;
  const auto found = known_.find(ask, engine_.symmetric());
  if (found && found->call == nullptr) return repeat_mpis(*found);
  if (!found ||
      !may_run_on(*found->call, found->input, found->x_bytes, found->output, found->out_bytes)) {
    return false;
  }
  // Held while it runs: the entry may be taken over by a call of another thread.
  const nb::object call = nb::borrow(found->holder);
  if (found->is_told && !next_is(*found->call, timeout_)) return false;
  keeping(ask.x, ask.out, [&](bool& stay_in_use) {
    run(*found->call, found->input, found->output, timeout_, false, stay_in_use);
  });
  return true;
}

bool Rank::repeat_mpis(const KnownCalls::Found& found) {
  const bool is_apart = found.input == found.output ||
                        found.input + found.x_bytes <= found.output ||
                        found.output + found.out_bytes <= found.input;
  if (!is_apart || engine_.is_closed()) return false;
  engine_.waiter().look_at_trouble();
  // Held while it runs: the entry may be taken over by a call of another thread.
  const nb::object call = nb::borrow(found.holder);
  const Outside outside;
  found.mpis->run(found.input, found.output);
  return true;
}

void Rank::remember(const KnownCalls::Ask& ask, nb::handle call, bool is_told) {
  known_.remember(ask, engine_.symmetric(), call, is_told);
}

bool Rank::is_symmetric(nb::handle memory, std::uint64_t bytes) {
  const Buffer buffer(memory, bytes, Buffer::Access::read, "memory");
  return engine_.symmetric().find(buffer.data(), bytes).has_value();
}

}  // namespace transports
