// The kernels, as Python sees them: for tests, and for transports written in Python.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "kernels.hpp"

namespace nb = nanobind;

namespace transports {
namespace {

// The bytes of an object with the buffer protocol, whatever type it says they are.
class Bytes {
 public:
  Bytes(nb::handle object, bool writable, const std::string& name) {
    const int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) == 0) return;
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError)) {
      throw nb::python_error();  // not a buffer at all: Python's own TypeError names its type
    }
    const nb::python_error reason;
    throw std::invalid_argument(name + ": expected a contiguous " + (writable ? "writable " : "") +
                                "buffer, found one that is not (" + reason.what() + ")");
  }
  ~Bytes() { PyBuffer_Release(&view_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  std::byte* data() const { return static_cast<std::byte*>(view_.buf); }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }

 private:
  Py_buffer view_{};
};

DType dtype_of(int number) {
  if (number >= 0 && number < static_cast<int>(dtype_count)) return static_cast<DType>(number);
  throw std::invalid_argument("dtype: expected 0.." + std::to_string(dtype_count - 1) + ", found " +
                              std::to_string(number));
}

Op op_of(int number) {
  if (number >= 0 && number < static_cast<int>(op_count)) return static_cast<Op>(number);
  throw std::invalid_argument("op: expected 0.." + std::to_string(op_count - 1) + ", found " +
                              std::to_string(number));
}

std::size_t count_of(const Bytes& buffer, DType dtype, const char* name) {
  if (buffer.size() % size_of(dtype) == 0) return buffer.size() / size_of(dtype);
  throw std::invalid_argument(std::string(name) + ": expected a multiple of " +
                              std::to_string(size_of(dtype)) + " bytes, found " +
                              std::to_string(buffer.size()));
}

void check_size(const Bytes& buffer, const Bytes& out, const std::string& name) {
  if (buffer.size() == out.size()) return;
  throw std::invalid_argument(name + ": expected " + std::to_string(out.size()) +
                              " bytes as in out, found " + std::to_string(buffer.size()));
}

// Two buffers of one size may be the same or apart, no other way.
void check_place(const Bytes& buffer, const Bytes& other, const std::string& names) {
  const auto a = reinterpret_cast<std::uintptr_t>(buffer.data());
  const auto b = reinterpret_cast<std::uintptr_t>(other.data());
  const std::uintptr_t distance = a > b ? a - b : b - a;
  if (distance == 0 || distance >= buffer.size()) return;
  throw std::invalid_argument(names + ": expected the same memory or none in common, found " +
                              std::to_string(buffer.size() - distance) + " bytes in common");
}

void reduce(int dtype_number, int op_number, const nb::list& inputs, nb::handle out_object,
            nb::handle also_object, int stores, std::size_t follows) {
  const DType dtype = dtype_of(dtype_number);
  const ReduceKernel kernel = reduce_kernel(dtype, op_of(op_number));
  if (kernel == nullptr) {
    throw std::invalid_argument("dtype " + std::to_string(dtype_number) + " has no op " +
                                std::to_string(op_number) +
                                ": expected a pair that `supports` accepts");
  }
  if (stores < 0 || stores > static_cast<int>(Stores::both_past_caches)) {
    throw std::invalid_argument("stores: expected 0 to 2, found " + std::to_string(stores));
  }
  if (inputs.size() == 0) throw std::invalid_argument("inputs: expected at least 1, found 0");

  const Bytes out(out_object, true, "out");
  const std::size_t count = count_of(out, dtype, "out");
  std::unique_ptr<Bytes> also;
  if (!also_object.is_none()) {
    also = std::make_unique<Bytes>(also_object, true, "also");
    check_size(*also, out, "also");
    check_place(*also, out, "also and out");
  }
  std::vector<std::unique_ptr<Bytes>> held;
  std::vector<const std::byte*> addresses;
  for (nb::handle input : inputs) {
    const std::string name = "inputs[" + std::to_string(held.size()) + "]";
    held.push_back(std::make_unique<Bytes>(input, false, name));
    check_size(*held.back(), out, name);
    check_place(*held.back(), out, name + " and out");
    if (also) check_place(*held.back(), *also, name + " and also");
    addresses.push_back(held.back()->data());
  }

  const nb::gil_scoped_release release;
  kernel(out.data(), also ? also->data() : nullptr, addresses.data(), addresses.size(), count,
         {static_cast<Stores>(stores), follows});
  end_streaming();
}

void divide(int dtype_number, nb::handle data_object, std::uint64_t divisor) {
  const DType dtype = dtype_of(dtype_number);
  const DivideKernel kernel = divide_kernel(dtype);
  if (kernel == nullptr) {
    throw std::invalid_argument("dtype: expected a floating-point one, found " +
                                std::to_string(dtype_number));
  }
  if (divisor == 0) throw std::invalid_argument("divisor: expected at least 1, found 0");
  const Bytes data(data_object, true, "data");
  const std::size_t count = count_of(data, dtype, "data");
  const nb::gil_scoped_release release;
  kernel(data.data(), count, divisor);
}

bool supports_numbers(int dtype, int op) {
  return supports(dtype_of(dtype), op_of(op));
}

}  // namespace

void register_kernels(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("reduce", &reduce, "dtype"_a, "op"_a, "inputs"_a, "out"_a,
             "also"_a.none() = nb::none(), "stores"_a = 0, "follows"_a = 0,
             "Fold the inputs in the order given into out and, if given, also.");
  module.def("divide", &divide, "dtype"_a, "data"_a, "divisor"_a,
             "Divide in place: the last step of avg.");
  module.def("supports", &supports_numbers, "dtype"_a, "op"_a);
  module.def("instruction_set", &instruction_set, "The one whose kernels run.");
  module.def("use_instruction_set", &use_instruction_set, "name"_a,
             "For tests: choose among those this CPU has.");
}

}  // namespace transports
