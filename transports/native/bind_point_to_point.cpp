// Point-to-point, as Python sees it; transports/_native.pyi says what the functions take.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "bindings.hpp"
#include "buffer.hpp"
#include "engine.hpp"
#include "outside.hpp"
#include "point_to_point.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

using Caller = PointToPoint::Caller;

// Beyond this, a post may copy for so long that other threads of Python should run meanwhile.
constexpr std::uint64_t kLongBytes = 16384;

// Point-to-point with the memory of its pending operations: that is kept until they are done,
// whether or not the user keeps the operation. Python's lock guards what is kept.
class Messages {
 public:
  explicit Messages(Engine& engine) : point_to_point_(engine.region(), engine.waiter()) {}

  PointToPoint::Handle post_send(nb::object buffer, std::uint64_t bytes, std::int32_t dest,
                                 std::int32_t tag, const char* what, nb::object keep) {
    return post(true, std::move(buffer), bytes, dest, tag, what, std::move(keep),
                Caller::waits_later);
  }
  PointToPoint::Handle post_recv(nb::object buffer, std::uint64_t bytes, std::int32_t source,
                                 std::int32_t tag, const char* what, nb::object keep,
                                 std::optional<nb::list> posted) {
    auto receive =
        post(false, std::move(buffer), bytes, source, tag, what, keep, Caller::waits_later);
    if (posted) posted->append(nb::make_tuple(receive, keep));
    return receive;
  }
  void send(nb::object buffer, std::uint64_t bytes, std::int32_t dest, std::int32_t tag,
            const char* what, double timeout) {
    wait(post(true, std::move(buffer), bytes, dest, tag, what, nb::none(), Caller::waits_at_once),
         timeout, true);
  }
  PointToPoint::Handle recv(nb::object buffer, std::uint64_t bytes, std::int32_t source,
                            std::int32_t tag, const char* what, double timeout) {
    auto receive =
        post(false, std::move(buffer), bytes, source, tag, what, nb::none(), Caller::waits_at_once);
    wait(receive, timeout, true);
    return receive;
  }
  void wait(const PointToPoint::Handle& operation, double timeout, bool fatal) {
    const Dropping drop(*this, operation.get());
    if (operation->is_done()) return point_to_point_.wait(*operation, timeout, fatal);
    const Outside outside;
    point_to_point_.wait(*operation, timeout, fatal);
  }
  void withdraw(const PointToPoint::Handle& receive) {
    const Dropping drop(*this, receive.get());
    if (is_closed_) return;  // it has failed
    const Outside outside;
    point_to_point_.withdraw(receive);
  }
  bool test(const PointToPoint::Handle& operation) {
    const Dropping drop(*this, operation.get());
    if (operation->is_done()) return point_to_point_.test(*operation);
    const Outside outside;
    return point_to_point_.test(*operation);
  }
  void close() {
    if (is_closed_) return;
    is_closed_ = true;
    {
      const Outside outside;
      point_to_point_.close();
    }
    drop_done();
  }

 private:
  struct Kept {
    PointToPoint::Handle operation;
    std::unique_ptr<Buffer> memory;
    nb::object owner;
  };
  // Lets go of an operation's memory if it is done when the scope ends, also by an exception.
  class Dropping {
   public:
    Dropping(Messages& messages, const Operation* operation)
        : messages_(messages), operation_(operation) {}
    ~Dropping() {
      if (!messages_.kept_.empty() && operation_->is_done()) {
        // Out of the map first: what is let go may run Python, and that may come here again.
        const auto dropped = messages_.kept_.extract(operation_);
      }
    }
    Dropping(const Dropping&) = delete;
    Dropping& operator=(const Dropping&) = delete;

   private:
    Messages& messages_;
    const Operation* operation_;
  };

  PointToPoint::Handle post(bool is_send, nb::object buffer, std::uint64_t bytes, std::int32_t peer,
                            std::int32_t tag, const char* what, nb::object owner, Caller caller) {
    auto memory = std::make_unique<Buffer>(
        buffer, bytes, is_send ? Buffer::Access::read : Buffer::Access::write, "buffer");
    PointToPoint::Handle operation;
    const auto begin = [&] {
      operation = is_send ? point_to_point_.post_send(memory->data(), bytes, peer, tag,
                                                      What::of(what), caller)
                          : point_to_point_.post_receive(memory->data(), bytes, peer, tag,
                                                         What::of(what), caller);
    };
    if (bytes <= kLongBytes || is_closed_) {
      begin();
    } else {
      const Outside outside;
      begin();
    }
    if (!operation->is_done()) {
      if (kept_.size() >= drop_at_) drop_done();
      kept_.emplace(operation.get(), Kept{operation, std::move(memory), std::move(owner)});
    }
    return operation;
  }
  // For operations that nobody waits for. Twice as many each time, so that it costs nothing much.
  void drop_done() {
    std::vector<Kept> dropped;
    for (auto each = kept_.begin(); each != kept_.end();) {
      if (each->second.operation->is_done()) {
        dropped.push_back(std::move(each->second));
        each = kept_.erase(each);
      } else {
        ++each;
      }
    }
    drop_at_ = std::max<std::size_t>(16, 2 * kept_.size());
  }

  // The last to be made and the first to go: close() comes before memory is let go.
  std::unordered_map<const Operation*, Kept> kept_;
  std::size_t drop_at_ = 16;
  bool is_closed_ = false;  // from here on nobody goes outside: all that is asked fails at once
  PointToPoint point_to_point_;
};

}  // namespace

void register_point_to_point(nb::module_& module) {
  nb::class_<Operation>(module, "Operation")
      .def_prop_ro("done", &Operation::is_done)
      .def_prop_ro("source",
                   [](const Operation& self) { return self.is_done() ? self.peer : kAny; })
      .def_prop_ro("tag", [](const Operation& self) { return self.is_done() ? self.tag : kAny; })
      .def_prop_ro("bytes", [](const Operation& self) { return self.bytes; });
  nb::class_<Messages>(module, "PointToPoint")
      .def(
          "__init__",
          [](Messages* self, nb::handle engine) { new (self) Messages(engine_of(engine)); },
          nb::keep_alive<1, 2>(), nb::arg("engine"))
      .def("post_send", &Messages::post_send, nb::arg("buffer").none(), nb::arg("bytes"),
           nb::arg("dest"), nb::arg("tag"), nb::arg("what"), nb::arg("keep") = nb::none())
      .def("post_recv", &Messages::post_recv, nb::arg("buffer").none(), nb::arg("bytes"),
           nb::arg("source"), nb::arg("tag"), nb::arg("what"), nb::arg("keep") = nb::none(),
           nb::arg("posted") = nb::none())
      .def("withdraw", &Messages::withdraw, nb::arg("receive"))
      .def("send", &Messages::send, nb::arg("buffer").none(), nb::arg("bytes"), nb::arg("dest"),
           nb::arg("tag"), nb::arg("what"), nb::arg("timeout"))
      .def("recv", &Messages::recv, nb::arg("buffer").none(), nb::arg("bytes"), nb::arg("source"),
           nb::arg("tag"), nb::arg("what"), nb::arg("timeout"))
      .def("wait", &Messages::wait, nb::arg("operation"), nb::arg("timeout"),
           nb::arg("fatal") = true)
      .def("test", &Messages::test, nb::arg("operation"))
      .def("close", &Messages::close);
}

}  // namespace transports
