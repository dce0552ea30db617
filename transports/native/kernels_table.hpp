// One instruction set's kernels. Each kernels_<instruction set>.cpp defines one such table.
#pragma once

#include "kernels.hpp"

namespace transports {

using CopyKernel = void (*)(std::byte* out, std::byte* also, const std::byte* input,
                            std::size_t bytes, Manner manner);

struct KernelTable {
  const char* name;
  ReduceKernel reduce[dtype_count][op_count];
  DivideKernel divide[dtype_count];
  CopyKernel copy_to_both;
};

// For every CPU of the architecture. The other two exist on x86-64 only.
extern const KernelTable baseline_kernels;
extern const KernelTable avx2_kernels;
extern const KernelTable avx512_kernels;

}  // namespace transports
