// A rank in a region into which another process writes anything, before its calls and while it
// waits in them. Whatever that is, the rank returns or throws Failure before its deadline, and
// touches nothing outside the region: which lies on the heap, so that the sanitizer sees the next
// byte.
//
// What is fuzzed: Region::attach on any header; calls and next_is of Engine, check_complete; posts,
// waits and tests of PointToPoint; and every text made of what others have written.
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "calls.hpp"
#include "engine.hpp"
#include "hostile.hpp"
#include "point_to_point.hpp"
#include "virtual_time.hpp"

namespace fuzzing {
namespace {

using namespace transports;

constexpr double kDeadline = 0.25;  // of virtual seconds
// Of another rank's trouble it waits for the text, a tenth of a second; the rest is our slack.
constexpr double kAfterDeadline = 0.25;
constexpr int kMostActions = 6;

constexpr Geometry kGeometries[] = {
    {2, 2, 2, 128, 2, 64},
    {3, 2, 2, 128, 2, 64},
    {3, 4, 2, 1024, 3, 128},
    {2, 2, 4, 65536, 5, 4096},
};

[[noreturn]] void is_wrong(const char* what) {
  std::fprintf(stderr, "found: %s\n", what);
  std::abort();
}

// Memory of exactly so many bytes, zeroed, at a page as a mapping is.
class Memory {
 public:
  explicit Memory(std::size_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(kPage, bytes))) {
    std::memset(data_, 0, bytes);
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
};

// Printable, so that no peer can command a terminal.
void check_text(const std::string& text) {
  for (const char each : text) {
    const auto byte = static_cast<unsigned char>(each);
    if ((byte < ' ' && byte != '\n' && byte != '\t') || byte == 0x7f) {
      is_wrong("a control character in the text of an error");
    }
  }
}

// The farthest corners of what attach() has let pass.
void check_extent(const Region& region, std::byte* base, std::size_t bytes) {
  const Geometry& geometry = region.geometry();
  // In more bits than the engine reckons in: the corners below may have wrapped.
  using Wide = unsigned __int128;
  const Wide of_a_pair = Wide{geometry.depth} * sizeof(Descriptor) +
                         Wide{geometry.lane_slots} * (sizeof(LaneDescriptor) + geometry.lane_bytes);
  const Wide of_a_rank =
      Wide{geometry.slots} * geometry.slot_bytes + Wide{geometry.ranks} * of_a_pair;
  if (geometry.ranks * of_a_rank > bytes) is_wrong("a region that does not fit in its memory");
  const std::uint32_t last = geometry.ranks - 1;
  const std::byte* const ends[] = {
      reinterpret_cast<std::byte*>(&region.standing(last) + 1),
      reinterpret_cast<std::byte*>(&region.acks(last, last) + 1),
      reinterpret_cast<std::byte*>(&region.descriptor(last, last, geometry.depth - 1) + 1),
      region.slot(last, {geometry.slots - 1, kLine - 1, false}) + geometry.slot_bytes,
      reinterpret_cast<std::byte*>(&region.lane_acks(last, last) + 1),
      reinterpret_cast<std::byte*>(&region.lane_descriptor(last, last, geometry.lane_slots - 1) +
                                   1),
      region.lane_slot(last, last, geometry.lane_slots - 1) + geometry.lane_bytes,
  };
  for (const std::byte* const end : ends) {
    if (end < base || end > base + bytes) is_wrong("a place outside the region");
  }
}

// A header with some of its numbers changed.
void damage_header(Bytes& bytes, std::byte* base) {
  Header& header = *reinterpret_cast<Header*>(base);
  Geometry& geometry = header.geometry;
  const auto number = [&]() -> std::uint64_t {
    const std::uint64_t one = 1;
    return bytes.below(4) == 0 ? bytes.next<std::uint64_t>()
                               : (one << bytes.below(64)) + bytes.below(3) - 1;
  };
  std::uint32_t* const words[] = {&geometry.ranks, &geometry.depth, &geometry.slots,
                                  &geometry.lane_slots};
  for (std::uint32_t changes = 1 + bytes.below(4); changes > 0; --changes) {
    switch (const std::uint32_t which = bytes.below(8)) {
      case 4:
        geometry.slot_bytes = number();
        break;
      case 5:
        geometry.lane_bytes = number();
        break;
      case 6:
        header.version = static_cast<std::uint32_t>(number());
        break;
      case 7:
        bytes.take(&header, 1 + bytes.below(64));
        break;
      default:
        *words[which] = static_cast<std::uint32_t>(number());
    }
  }
}

// Without a descriptor that watches it nobody may copy from it.
std::vector<Waiter::Peer> this_process(std::uint32_t ranks, bool is_watched) {
  std::vector<Waiter::Peer> peers;
  const auto pid = static_cast<std::uint32_t>(::getpid());
  for (std::uint32_t i = 0; i < ranks; ++i) {
    const auto watch = is_watched ? ::syscall(SYS_pidfd_open, pid, 0) : -1;
    peers.push_back({"host", pid, static_cast<int>(watch)});
  }
  return peers;
}

// One rank, its memory, and what it can do.
class Victim {
 public:
  Victim(Bytes& bytes, const Region& region, std::uint32_t rank)
      : bytes_(bytes),
        engine_(region, rank, this_process(region.geometry().ranks, bytes.below(4) != 0), true),
        messages_(region, engine_.waiter()) {
    // Then it copies from whatever address a message names, in this very process.
    engine_.set_lend(bytes.below(2) == 0 ? Lend::always : Lend::when_quicker);
    engine_.waiter().set_describe(
        kDeadline / 8, {[](const std::string& text, const std::vector<Sighting>& sightings, bool) {
                          std::string whole = text;
                          for (const auto& each : sightings) whole += each.name + each.text;
                          check_text(whole);
                          return whole;
                        },
                        [](std::uint32_t) { return "here:1"; }, [] { return true; }});
  }

  void act() {
    const std::int64_t began = virtual_now_ns();
    try {
      choose();
    } catch (const Failure& failure) {
      check_text(failure.what());
    }
    const double took = static_cast<double>(virtual_now_ns() - began) * 1e-9;
    if (took > kDeadline + kAfterDeadline) is_wrong("a wait beyond its deadline");
  }

 private:
  void choose() {
    switch (bytes_.below(6)) {
      case 0:
        return post();
      case 1:
        return wait();
      case 2:
        return engine_.check_complete();
      case 3: {
        std::vector<std::uint32_t> ranks(engine_.region().geometry().ranks);
        for (std::uint32_t i = 0; i < ranks.size(); ++i) ranks[i] = i;
        return engine_.waiter().look_at(ranks);
      }
      case 4: {
        const Call next = make_call(bytes_, engine_.region().geometry(), engine_.rank());
        engine_.next_is(next, kDeadline, {});
        return;
      }
      default:
        return call();
    }
  }
  void call() {
    const Call call = make_call(bytes_, engine_.region().geometry(), engine_.rank());
    const std::vector<std::byte> input(call.input_bytes());
    std::vector<std::byte> output(call.output_bytes());
    engine_.execute(call, input.data(), output.data(), kDeadline, bytes_.below(2) != 0);
  }
  void post() {
    constexpr std::uint64_t kLengths[] = {0, 8, 16, 17, 64, 65, 128, 1000, 4096, 4097};
    const std::uint64_t length = kLengths[bytes_.below(std::size(kLengths))];
    const auto ranks = static_cast<std::int32_t>(engine_.region().geometry().ranks);
    const auto tag = static_cast<std::int32_t>(bytes_.below(2));
    buffers_.emplace_back(std::make_unique<std::byte[]>(length));
    std::byte* const memory = buffers_.back().get();
    const auto caller = PointToPoint::Caller::waits_at_once;
    const auto peer = static_cast<std::int32_t>(bytes_.below(static_cast<std::uint32_t>(ranks)));
    const What what = What::of(bytes_.below(2) ? "uint8" : "");
    if (bytes_.below(2) != 0) {
      pending_.push_back(messages_.post_send(memory, length, peer, tag, what, caller));
    } else {
      pending_.push_back(messages_.post_receive(memory, length, bytes_.below(4) ? peer : kAny,
                                                bytes_.below(4) ? tag : kAny, what, caller));
    }
  }
  void wait() {
    if (pending_.empty()) post();
    Operation& operation = *pending_[bytes_.below(static_cast<std::uint32_t>(pending_.size()))];
    if (bytes_.below(4) == 0) {
      messages_.test(operation);
    } else {
      messages_.wait(operation, kDeadline, true);
    }
  }

  Bytes& bytes_;
  std::vector<std::unique_ptr<std::byte[]>> buffers_;
  Engine engine_;
  PointToPoint messages_;
  std::vector<PointToPoint::Handle> pending_;
};

void run(Bytes bytes) {
  const Geometry& written = kGeometries[bytes.below(std::size(kGeometries))];
  const std::size_t size = written.total_bytes();
  const Memory memory(size);
  std::unique_ptr<Region> region;
  // Many headers an input: each is quick, and few pass. The rank runs on the one that did.
  std::uint32_t headers = bytes.below(4) == 0 ? 1 + bytes.below(64) : 0;
  do {
    Region::format(memory.data(), written);
    if (headers > 0) damage_header(bytes, memory.data());
    try {
      region = std::make_unique<Region>(Region::attach(memory.data(), size));
      check_extent(*region, memory.data(), size);
      break;
    } catch (const std::runtime_error& error) {
      check_text(error.what());
    }
  } while (headers-- > 1 && !bytes.is_empty());
  if (!region) return;
  const Geometry& geometry = region->geometry();
  if (geometry.ranks < 2) return;  // alone: nobody to wait for
  const std::uint32_t rank = bytes.below(geometry.ranks);
  Hostile hostile(bytes, memory.data(), geometry, rank);
  Victim victim(bytes, *region, rank);
  set_turn([&] { hostile.take_turn(); });
  for (int action = 0; action < kMostActions && !bytes.is_empty(); ++action) {
    hostile.strike();
    try {
      victim.act();
    } catch (const std::invalid_argument&) {
      // A call that does not fit a damaged header's slots.
    }
  }
  set_turn({});
}

}  // namespace
}  // namespace fuzzing

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzzing::run({data, size});
  return 0;
}
