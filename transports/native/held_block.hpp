// A symmetric block as Python holds it: one of several holders.
#pragma once

#include <memory>

#include "symmetric.hpp"

namespace transports {

struct HeldBlock {
  std::shared_ptr<const SymmetricBlock> block;
};

}  // namespace transports
