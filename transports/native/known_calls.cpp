#include "known_calls.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/ndarraytypes.h>

#include <algorithm>

namespace nb = nanobind;

namespace transports {
namespace {

// The type of numpy's arrays itself, not one derived from it, whose elements may mean more.
PyTypeObject* array_type() {
  static PyTypeObject* const type = reinterpret_cast<PyTypeObject*>(
      nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr());
  return type;
}

PyArrayObject* as_array(nb::handle object) {
  return Py_TYPE(object.ptr()) == array_type() ? reinterpret_cast<PyArrayObject*>(object.ptr())
                                               : nullptr;
}

PyObject* dtype_of(PyArrayObject* array) {
  return reinterpret_cast<PyObject*>(PyArray_DESCR(array));
}

bool has_flags(PyArrayObject* array, int flags) {
  return (PyArray_FLAGS(array) & flags) == flags;
}

std::byte* data_of(PyArrayObject* array) {
  return static_cast<std::byte*>(PyArray_DATA(array));
}

// An array that begins in a block lies in it.
bool is_in(const SymmetricMemory& symmetric, PyArrayObject* array) {
  return !symmetric.is_empty() && symmetric.find(data_of(array), 0).has_value();
}

bool has_shape(PyArrayObject* array, const std::vector<std::ptrdiff_t>& shape) {
  return static_cast<std::size_t>(PyArray_NDIM(array)) == shape.size() &&
         std::equal(shape.begin(), shape.end(), PyArray_DIMS(array));
}

}  // namespace

std::size_t KnownCalls::place_of(const Ask& ask, bool symmetric) {
  auto* const x = reinterpret_cast<PyArrayObject*>(ask.x.ptr());
  auto hash = (reinterpret_cast<std::size_t>(ask.collective.ptr()) >> 4) + symmetric;
  for (int axis = 0; axis < PyArray_NDIM(x); ++axis) {
    hash = hash * 1000003 + static_cast<std::size_t>(PyArray_DIM(x, axis));
  }
  for (const void* each :
       {static_cast<void*>(dtype_of(x)), static_cast<void*>(ask.op.ptr()),
        static_cast<void*>(ask.algorithm.ptr()), static_cast<void*>(ask.root.ptr())}) {
    hash = hash * 1000003 + (reinterpret_cast<std::size_t>(each) >> 4);
  }
  return (hash ^ hash >> 17 ^ hash >> 34) % kEntries;
}

std::optional<KnownCalls::Found> KnownCalls::find(const Ask& ask,
                                                  const SymmetricMemory& symmetric) const {
  PyArrayObject* const x = as_array(ask.x);
  if (x == nullptr) return std::nullopt;
  const bool lies = is_in(symmetric, x);
  const Entry& entry = entries_[place_of(ask, lies)];
  if (entry.call == nullptr || entry.collective.ptr() != ask.collective.ptr() ||
      entry.root.ptr() != ask.root.ptr() || entry.x.dtype.ptr() != dtype_of(x) || entry.x.symmetric != lies ||
      entry.op.ptr() != ask.op.ptr() || entry.algorithm.ptr() != ask.algorithm.ptr() ||
      entry.deterministic.ptr() != ask.deterministic.ptr() || !has_shape(x, entry.x.shape) ||
      !has_flags(x, NPY_ARRAY_C_CONTIGUOUS)) {
    return std::nullopt;
  }
  Found found{entry.call, entry.holder, data_of(x), nullptr};
  if (entry.out.dtype.is_valid()) {
    PyArrayObject* const out = as_array(ask.out);
    if (out == nullptr || entry.out.dtype.ptr() != dtype_of(out) ||
        entry.out.symmetric != is_in(symmetric, out) ||
        !has_shape(out, entry.out.shape) ||
        !has_flags(out, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_WRITEABLE)) {
      return std::nullopt;
    }
    found.output = data_of(out);
  } else if (!ask.out.is_none()) {
    return std::nullopt;
  }
  return found;
}

void KnownCalls::remember(const Ask& ask, const SymmetricMemory& symmetric, nb::handle call) {
  const auto described = [&](PyArrayObject* array) {
    return Array{{PyArray_DIMS(array), PyArray_DIMS(array) + PyArray_NDIM(array)},
                 nb::borrow(dtype_of(array)),
                 is_in(symmetric, array)};
  };
  PyArrayObject* const x = as_array(ask.x);
  if (x == nullptr) return;
  Array result;
  if (!ask.out.is_none()) {
    PyArrayObject* const out = as_array(ask.out);
    if (out == nullptr) return;
    result = described(out);
  }
  entries_[place_of(ask, is_in(symmetric, x))] = {described(x),
                             std::move(result),
                             nb::borrow(ask.collective),
                             nb::borrow(ask.root),
                             nb::borrow(ask.op),
                             nb::borrow(ask.algorithm),
                             nb::borrow(ask.deterministic),
                             nb::borrow(call),
                             &nb::cast<const Call&>(call)};
}

}  // namespace transports
