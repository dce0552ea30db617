// Symmetric memory, as Python sees it.
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "bindings.hpp"
#include "symmetric.hpp"

namespace nb = nanobind;

namespace transports {

void register_symmetric(nb::module_& module) {
  nb::class_<SymmetricBlock>(module, "SymmetricBlock")
      .def(nb::init<int, std::uint32_t, std::uint64_t>(), nb::arg("fd"), nb::arg("parts"),
           nb::arg("bytes"))
      .def(
          "part",
          [](const SymmetricBlock& self, std::uint32_t index, nb::handle owner) {
            if (index >= self.parts()) throw nb::index_error("the block has no such part");
            const std::size_t shape[] = {self.bytes()};
            return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(self.part(index), 1, shape,
                                                                    owner);
          },
          nb::arg("index"), nb::arg("owner"));
  module.def("symmetric_file_bytes", &SymmetricBlock::file_bytes, nb::arg("parts"),
             nb::arg("bytes"));
}

}  // namespace transports
