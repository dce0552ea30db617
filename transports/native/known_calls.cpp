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

std::byte* data_of(PyArrayObject* array) {
  return static_cast<std::byte*>(PyArray_DATA(array));
}

// An array that begins in a block lies in it.
bool is_in(const SymmetricMemory& symmetric, PyArrayObject* array) {
  return !symmetric.is_empty() && symmetric.find(data_of(array), 0).has_value();
}

}  // namespace

// An argument as it was given now.
struct KnownCalls::Given {
  PyArrayObject* array = nullptr;  // null for None
  bool symmetric = false;
  bool is_usable = true;  // None, or an array of numpy's own type

  Given(nb::handle object, const SymmetricMemory& memory) {
    if (object.is_none()) return;
    array = as_array(object);
    is_usable = array != nullptr;
    symmetric = is_usable && is_in(memory, array);
  }

  std::byte* data() const { return array == nullptr ? nullptr : data_of(array); }

  std::size_t add_to(std::size_t hash) const {
    if (array == nullptr) return hash;
    hash = hash * 1000003 + (reinterpret_cast<std::size_t>(dtype_of(array)) >> 4) + symmetric;
    for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
      hash = hash * 1000003 + static_cast<std::size_t>(PyArray_DIM(array, axis));
    }
    return hash;
  }

  bool is(const Array& known, int flags) const {
    if (array == nullptr || !known.dtype.is_valid()) return !array && !known.dtype.is_valid();
    return known.dtype.ptr() == dtype_of(array) && known.symmetric == symmetric &&
           static_cast<std::size_t>(PyArray_NDIM(array)) == known.shape.size() &&
           std::equal(known.shape.begin(), known.shape.end(), PyArray_DIMS(array)) &&
           (PyArray_FLAGS(array) & flags) == flags;
  }

  Array described() const {
    if (array == nullptr) return {};
    return {{PyArray_DIMS(array), PyArray_DIMS(array) + PyArray_NDIM(array)},
            nb::borrow(dtype_of(array)),
            symmetric,
            nb::cast<std::uint64_t>(nb::handle(reinterpret_cast<PyObject*>(array)).attr("nbytes"))};
  }
};

std::size_t KnownCalls::set_of(const Ask& ask, const Given& x, const Given& out) {
  std::size_t hash = out.add_to(x.add_to(0));
  for (const nb::handle each : {ask.collective, ask.root, ask.op, ask.algorithm}) {
    hash = hash * 1000003 + (reinterpret_cast<std::size_t>(each.ptr()) >> 4);
  }
  return (hash ^ hash >> 17 ^ hash >> 34) % kSets;
}

bool KnownCalls::is_for(const Entry& entry, const Ask& ask, const Given& x, const Given& out) {
  return entry.collective.ptr() == ask.collective.ptr() && entry.holder.is_valid() &&
         entry.root.ptr() == ask.root.ptr() && entry.op.ptr() == ask.op.ptr() &&
         entry.algorithm.ptr() == ask.algorithm.ptr() &&
         entry.deterministic.ptr() == ask.deterministic.ptr() &&
         x.is(entry.x, NPY_ARRAY_C_CONTIGUOUS) &&
         out.is(entry.out, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_WRITEABLE);
}

std::optional<KnownCalls::Found> KnownCalls::find(const Ask& ask,
                                                  const SymmetricMemory& symmetric) const {
  const Given x(ask.x, symmetric), out(ask.out, symmetric);
  if (!x.is_usable || !out.is_usable) return std::nullopt;
  for (const Entry& entry : sets_[set_of(ask, x, out)].entries) {
    if (!is_for(entry, ask, x, out)) continue;
    return Found{entry.call, entry.mpis,    entry.holder,  x.data(),
                 out.data(), entry.is_told, entry.x.bytes, entry.out.bytes};
  }
  return std::nullopt;
}

void KnownCalls::remember(const Ask& ask, const SymmetricMemory& symmetric, nb::handle call,
                          bool is_told) {
  const Given x(ask.x, symmetric), out(ask.out, symmetric);
  if (!x.is_usable || !out.is_usable) return;
  Set& set = sets_[set_of(ask, x, out)];
  // Where it is known already, it takes its own place again: it may be another call now.
  auto place = std::find_if(set.entries.begin(), set.entries.end(),
                            [&](const Entry& entry) { return is_for(entry, ask, x, out); });
  if (place == set.entries.end()) {
    place = set.entries.begin() + static_cast<std::ptrdiff_t>(set.oldest);
    set.oldest = (set.oldest + 1) % kWays;
  }
  const MpiCall* mpis = nullptr;
  const bool is_mpis = nb::try_cast(call, mpis) && mpis != nullptr;
  *place = {x.described(),
            out.described(),
            nb::borrow(ask.collective),
            nb::borrow(ask.root),
            nb::borrow(ask.op),
            nb::borrow(ask.algorithm),
            nb::borrow(ask.deterministic),
            nb::borrow(call),
            is_mpis ? nullptr : &nb::cast<const Call&>(call),
            mpis,
            is_told};
}

}  // namespace transports
