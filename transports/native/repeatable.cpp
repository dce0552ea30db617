#include "repeatable.hpp"

#include <nanobind/stl/string.h>
#include <structmember.h>

#include <cstddef>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "rank.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

// The names of arguments, as the compiler of Python makes them: compared by identity.
struct Names {
  nb::object engine = interned("_engine");
  nb::object out = interned("out");
  nb::object root = interned("root");
  nb::object op = interned("op");
  nb::object algorithm = interned("algorithm");
  nb::object deterministic = interned("deterministic");
  nb::object async_op = interned("async_op");
  nb::object timeout = interned("timeout");
  nb::object counts = interned("counts");

  static nb::object interned(const char* text) {
    return nb::steal(PyUnicode_InternFromString(text));
  }
};

const Names& names() {
  // Never destroyed: the interpreter may be gone before.
  static const Names* const made = new Names;
  return *made;
}

struct Repeatable {
  PyObject_HEAD vectorcallfunc call;
  PyObject* dict;  // what functools.update_wrapper writes
  PyObject* function;
  PyObject* collective;
  // Of arguments that are not given.
  PyObject* root;
  PyObject* op;
  PyObject* deterministic;
  PyObject* weak_references;
  bool takes_array;
  bool is_scatter;
  // Which keywords the function has, beside those that all have.
  bool takes_root, takes_op, takes_deterministic, takes_counts;
};

// Sets the error of Python that `failure` is. Nothing may be thrown on from here: the caller is C.
void set_error(const std::exception_ptr& failure) noexcept {
  try {
    try {
      std::rethrow_exception(failure);
    } catch (const Failure&) {
      translate_failure(failure, nullptr);
    } catch (const Interrupted&) {
      translate_failure(failure, nullptr);
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::bad_alloc&) {
      PyErr_NoMemory();
    }
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

// What the call asks for, if it is one that may have been remembered.
bool read_arguments(const Repeatable& self, PyObject* const* args, std::size_t count,
                    PyObject* keywords, KnownCalls::Ask& ask) {
  if (count != (self.takes_array ? 2u : 1u)) return false;
  ask = {
      self.collective,   self.takes_array ? args[1] : Py_None, Py_None, self.root, self.op, Py_None,
      self.deterministic};
  const Py_ssize_t given = keywords == nullptr ? 0 : PyTuple_Size(keywords);
  for (Py_ssize_t i = 0; i < given; ++i) {
    PyObject* const name = PyTuple_GetItem(keywords, i);
    PyObject* const value = args[count + static_cast<std::size_t>(i)];
    if (name == names().out.ptr() && self.takes_array) {
      ask.out = value;
    } else if (name == names().root.ptr() && self.takes_root) {
      ask.root = value;
    } else if (name == names().op.ptr() && self.takes_op) {
      ask.op = value;
    } else if (name == names().algorithm.ptr()) {
      ask.algorithm = value;
    } else if (name == names().deterministic.ptr() && self.takes_deterministic) {
      ask.deterministic = value;
    } else if (!(name == names().async_op.ptr() && value == Py_False) &&
               !(name == names().timeout.ptr() && value == Py_None) &&
               !(name == names().counts.ptr() && value == Py_None && self.takes_counts)) {
      return false;  // asynchronous, a time of its own, counts, or a mistake
    }
  }
  return true;
}

PyObject* call_repeatable(PyObject* object, PyObject* const* args, std::size_t flagged,
                          PyObject* keywords) {
  const auto& self = *reinterpret_cast<Repeatable*>(object);
  const auto count = static_cast<std::size_t>(PyVectorcall_NARGS(flagged));
  KnownCalls::Ask ask;
  if (read_arguments(self, args, count, keywords, ask)) {
    try {
      const nb::object engine = nb::steal(PyObject_GetAttr(args[0], names().engine.ptr()));
      if (!engine.is_valid()) return nullptr;
      Rank* const rank = rank_of(engine);
      bool is_known = rank != nullptr;
      if (is_known && self.is_scatter) {
        // Only the root's array is read; others may pass anything.
        const long root = PyLong_Check(ask.root.ptr()) ? PyLong_AsLong(ask.root.ptr()) : -1;
        if (root == -1 && PyErr_Occurred() != nullptr) PyErr_Clear();
        if (root != static_cast<long>(rank->engine().rank())) ask.x = nb::none();
        is_known = !ask.out.is_none();
      }
      if (is_known && rank->repeat(ask)) return ask.out.inc_ref().ptr();
    } catch (...) {
      set_error(std::current_exception());
      return nullptr;
    }
  }
  if (self.function == nullptr) {  // a finalizer runs, after the collector has cleared this
    PyErr_SetString(PyExc_ReferenceError, "the method is being destroyed");
    return nullptr;
  }
  return PyObject_Vectorcall(self.function, args, flagged, keywords);
}

// For pickle and copy: by its name, as a function.
PyObject* reduce(PyObject* self, PyObject*) {
  return PyObject_GetAttrString(self, "__qualname__");
}

PyObject* represent(PyObject* object) {
  return PyObject_Repr(reinterpret_cast<Repeatable*>(object)->function);
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  const auto& self = *reinterpret_cast<Repeatable*>(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self.dict);
  Py_VISIT(self.function);
  Py_VISIT(self.collective);
  Py_VISIT(self.root);
  Py_VISIT(self.op);
  Py_VISIT(self.deterministic);
  return 0;
}

int clear(PyObject* object) {
  auto& self = *reinterpret_cast<Repeatable*>(object);
  Py_CLEAR(self.dict);
  Py_CLEAR(self.function);
  Py_CLEAR(self.collective);
  Py_CLEAR(self.root);
  Py_CLEAR(self.op);
  Py_CLEAR(self.deterministic);
  return 0;
}

void destroy(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  PyObject_GC_UnTrack(object);
  if (reinterpret_cast<Repeatable*>(object)->weak_references != nullptr) {
    PyObject_ClearWeakRefs(object);
  }
  clear(object);
  PyObject_GC_Del(object);
  Py_DECREF(type);
}

PyObject* method_type() {
  static PyObject* const type =
      nb::object(nb::module_::import_("types").attr("MethodType")).release().ptr();
  return type;
}

// As a function: found on an object it is a method of it.
PyObject* get_bound(PyObject* self, PyObject* object, PyObject*) {
  if (object == nullptr || object == Py_None) return Py_NewRef(self);
  return PyObject_CallFunctionObjArgs(method_type(), self, object, nullptr);
}

PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Repeatable, call), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(Repeatable, dict), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Repeatable, weak_references), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr},
};

PyGetSetDef accessors[] = {
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyMethodDef methods[] = {
    {"__reduce__", reduce, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyType_Slot slots[] = {
    {Py_tp_call, reinterpret_cast<void*>(PyVectorcall_Call)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(clear)},
    {Py_tp_descr_get, reinterpret_cast<void*>(get_bound)},
    {Py_tp_repr, reinterpret_cast<void*>(represent)},
    {Py_tp_members, members},
    {Py_tp_methods, methods},
    {Py_tp_getset, accessors},
    {0, nullptr},
};

PyType_Spec spec = {"transports._native.Repeatable", sizeof(Repeatable), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                        Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                    slots};

PyTypeObject* repeatable_type() {
  static PyObject* const type = PyType_FromSpec(&spec);
  if (type == nullptr) throw nb::python_error();
  return reinterpret_cast<PyTypeObject*>(type);
}

}  // namespace

nb::object make_repeatable(nb::handle function) {
  // Made here, where what goes wrong may be thrown.
  names();
  method_type();
  nb::object collective = function.attr("__name__");
  const nb::dict defaults = nb::cast<nb::dict>(function.attr("__kwdefaults__"));
  const auto default_of = [&defaults](const char* name, nb::handle otherwise) {
    return nb::object(defaults.contains(name) ? nb::borrow(defaults[name]) : nb::borrow(otherwise));
  };
  nb::object root = default_of("root", nb::int_(0));
  nb::object op = default_of("op", nb::none());
  nb::object deterministic = default_of("deterministic", nb::borrow(Py_False));
  const auto name = nb::cast<std::string>(collective);
  auto* const made = PyObject_GC_New(Repeatable, repeatable_type());
  if (made == nullptr) throw nb::python_error();
  made->call = call_repeatable;
  made->dict = nullptr;
  made->weak_references = nullptr;
  made->function = nb::borrow(function).release().ptr();
  made->collective = collective.release().ptr();
  PyUnicode_InternInPlace(&made->collective);
  made->root = root.release().ptr();
  made->op = op.release().ptr();
  made->deterministic = deterministic.release().ptr();
  made->takes_array = name != "barrier";
  made->is_scatter = name == "scatter";
  made->takes_root = defaults.contains("root");
  made->takes_op = defaults.contains("op");
  made->takes_deterministic = defaults.contains("deterministic");
  made->takes_counts = defaults.contains("counts");
  PyObject_GC_Track(reinterpret_cast<PyObject*>(made));
  nb::object result = nb::steal(reinterpret_cast<PyObject*>(made));
  nb::module_::import_("functools").attr("update_wrapper")(result, function);
  return result;
}

}  // namespace transports
