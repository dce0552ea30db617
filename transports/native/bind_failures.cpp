// Failures of the engine as the exceptions of transports/errors.py; the only place that translates.
#include <string_view>
#include <system_error>

#include "bindings.hpp"
#include "failure.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

const char* class_name(FailureKind kind) {
  switch (kind) {
    case FailureKind::mismatch:
      return "MismatchError";
    case FailureKind::peer_lost:
      return "PeerLostError";
    case FailureKind::aborted:
      return "AbortedError";
    case FailureKind::timeout:
      return "CollectiveTimeout";
    case FailureKind::misuse:
      break;
  }
  return "CollectiveError";
}

}  // namespace

void translate_failure(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Failure& failure) {
    nb::object error = nb::module_::import_("transports.errors").attr(class_name(failure.kind()));
    const std::string_view text(failure.what());
    // What another rank wrote may be cut in the middle of a character.
    nb::object decoded = nb::steal(
        PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
    if (decoded.is_valid()) PyErr_SetObject(error.ptr(), decoded.ptr());
  } catch (const std::system_error& error) {
    const nb::object words = nb::make_tuple(error.code().value(), error.what());
    PyErr_SetObject(PyExc_OSError, words.ptr());
  } catch (const Interrupted&) {
    // The signal handler's exception is already set.
  }
}

void register_failures(nb::module_&) {
  nb::register_exception_translator(translate_failure);
}

}  // namespace transports
