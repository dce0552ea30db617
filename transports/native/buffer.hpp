// Memory that Python passes: an object with the buffer protocol, or an address as an int (torch
// tensors, and numpy types that the buffer protocol cannot name), or None for none.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace transports {

class Buffer {
 public:
  enum class Access { read, write };

  // Throws std::invalid_argument if the memory is shorter than `bytes`; of an address the caller
  // vouches for the length.
  Buffer(nanobind::handle object, std::size_t bytes, Access access, const char* name) {
    if (object.is_none()) {
      if (bytes != 0) refuse(name, bytes, 0);
      return;
    }
    if (PyLong_CheckExact(object.ptr())) {
      data_ = static_cast<std::byte*>(PyLong_AsVoidPtr(object.ptr()));
      if (data_ == nullptr && PyErr_Occurred()) throw nanobind::python_error();
      return;
    }
    const int flags = access == Access::write ? PyBUF_WRITABLE | PyBUF_SIMPLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nanobind::python_error();
    held_ = true;
    if (static_cast<std::size_t>(view_.len) < bytes) {
      const auto found = static_cast<std::size_t>(view_.len);
      PyBuffer_Release(&view_);
      refuse(name, bytes, found);
    }
    data_ = static_cast<std::byte*>(view_.buf);
  }
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  [[noreturn]] static void refuse(const char* name, std::size_t expected, std::size_t found) {
    throw std::invalid_argument(std::string(name) + ": expected at least " +
                                std::to_string(expected) + " bytes, found " +
                                std::to_string(found));
  }

  Py_buffer view_{};
  std::byte* data_ = nullptr;
  bool held_ = false;
};

}  // namespace transports
