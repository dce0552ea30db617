// Which kernels run here: the best instruction set this CPU has, unless a test asked for another.
#include "kernels.hpp"

#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels_table.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

namespace transports {
namespace {

#if defined(__x86_64__)
bool has_f16c() {  // not every compiler lets __builtin_cpu_supports ask for it
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// Best first. __builtin_cpu_supports also asks whether the operating system saves the wide
// registers.
std::vector<const KernelTable*> tables_of_this_cpu() {
  std::vector<const KernelTable*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    tables.push_back(&avx512_kernels);
  if (avx2) tables.push_back(&avx2_kernels);
#endif
  tables.push_back(&baseline_kernels);
  return tables;
}

// The one state of the process in these files. Every table gives the same bits, so nobody sees it
// change but the clock.
std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{tables_of_this_cpu().front()};
  return table;
}

const KernelTable& table() {
  return *current().load(std::memory_order_relaxed);
}

}  // namespace

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::int8:
    case DType::uint8:
    case DType::boolean:
      return 1;
    case DType::float16:
    case DType::bfloat16:
    case DType::int16:
    case DType::uint16:
      return 2;
    case DType::float32:
    case DType::int32:
    case DType::uint32:
      return 4;
    case DType::float64:
    case DType::int64:
    case DType::uint64:
      return 8;
  }
  throw std::invalid_argument("no dtype has the number " + std::to_string(static_cast<int>(dtype)));
}

ReduceKernel reduce_kernel(DType dtype, Op op) {
  const auto row = static_cast<std::size_t>(dtype), column = static_cast<std::size_t>(op);
  return row < dtype_count && column < op_count ? table().reduce[row][column] : nullptr;
}

bool supports(DType dtype, Op op) {
  return reduce_kernel(dtype, op) != nullptr;
}

DivideKernel divide_kernel(DType dtype) {
  const auto row = static_cast<std::size_t>(dtype);
  return row < dtype_count ? table().divide[row] : nullptr;
}

void copy_to_both(std::byte* out, std::byte* also, const std::byte* input, std::size_t bytes,
                  Manner manner) {
  table().copy_to_both(out, also, input, bytes, manner);
}

void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

const char* instruction_set() {
  return table().name;
}

void use_instruction_set(const char* name) {
  std::string valid;
  for (const KernelTable* candidate : tables_of_this_cpu()) {
    if (std::strcmp(candidate->name, name) == 0)
      return current().store(candidate, std::memory_order_relaxed);
    valid += valid.empty() ? candidate->name : std::string(", ") + candidate->name;
  }
  throw std::invalid_argument("unknown instruction set '" + std::string(name) + "': this CPU has " +
                              valid);
}

}  // namespace transports
