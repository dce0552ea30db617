// Symmetric memory, as Python sees it.
#include <nanobind/ndarray.h>

#include <memory>

#include "bindings.hpp"
#include "held_block.hpp"
#include "mapping.hpp"

namespace nb = nanobind;

namespace transports {

void register_symmetric(nb::module_& module) {
  nb::class_<HeldBlock>(module, "SymmetricBlock")
      .def(
          "__init__",
          [](HeldBlock* self, int fd, std::uint32_t parts, std::uint64_t bytes) {
            new (self) HeldBlock{std::make_shared<const SymmetricBlock>(fd, parts, bytes)};
          },
          nb::arg("fd"), nb::arg("parts"), nb::arg("bytes"))
      .def(
          "part",
          [](const HeldBlock& self, std::uint32_t index, nb::handle owner) {
            if (index >= self.block->parts()) throw nb::index_error("the block has no such part");
            const std::size_t shape[] = {self.block->bytes()};
            return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(self.block->part(index), 1,
                                                                     shape, owner);
          },
          nb::arg("index"), nb::arg("owner"))
      .def("keep", [](const HeldBlock& self) {
        // Not an object of this module's classes: arrays may be alive when the module no longer is.
        auto held = std::make_unique<std::shared_ptr<const SymmetricBlock>>(self.block);
        nb::capsule capsule(held.get(), [](void* pointer) noexcept {
          delete static_cast<std::shared_ptr<const SymmetricBlock>*>(pointer);
        });
        held.release();  // the capsule's from here on
        return capsule;
      });
  module.def("symmetric_file_bytes", &SymmetricBlock::file_bytes, nb::arg("parts"),
             nb::arg("bytes"));
  module.def("take_huge_pages", &take_huge_pages, nb::arg("fd"));
}

}  // namespace transports
