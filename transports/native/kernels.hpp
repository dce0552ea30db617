// Reductions over memory: fold several inputs into one result, in the order given, in one pass.
//
// The code is compiled once per instruction set (kernels_body.hpp) and chosen when the program
// runs; every instruction set gives the same bits. No kernel allocates, throws or keeps state, so
// any thread may call any of them at any time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace transports {

// The values are fixed: plans carry them, and Python names them by number.
enum class DType : std::uint8_t {
  float16,
  bfloat16,
  float32,
  float64,
  int8,
  int16,
  int32,
  int64,
  uint8,
  uint16,
  uint32,
  uint64,
  boolean,
};
inline constexpr std::size_t dtype_count = 13;

// avg is sum, then divide_kernel.
enum class Op : std::uint8_t { sum, prod, min, max, band, bor, bxor, land, lor, lxor };
inline constexpr std::size_t op_count = 10;

std::size_t size_of(DType dtype);

// sum, prod, min, max: every type. Bitwise and logical: integers and boolean.
bool supports(DType dtype, Op op);

// How `out` is stored, or both results. Past the caches it is not read into them first, and what
// lies in them stays: for results that are longer than a cache. Such stores are ordered by
// end_streaming() alone. Where a result is not aligned to its elements, `also` not as `out` is, or
// the processor has no such stores, they are plain.
enum class Stores : std::uint8_t { cached, past_caches, both_past_caches };

// `follows`: how many more elements lie behind what a kernel is given, which it may ask the caches
// for: where a long operand is worked through in short pieces.
struct Manner {
  Stores stores = Stores::cached;
  std::size_t follows = 0;
};

// Folds inputs[0..n) as ((x0+x1)+x2)+... into `out` and, unless it is null, the same bits into
// `also`: a result that is kept and sent on costs one pass over memory.
//   n >= 1; with n == 1 the bytes are copied as they are. count may be 0. No address need be
//   aligned. `out` and `also` may each be exactly one of the inputs; otherwise nothing may overlap.
//   16-bit floats accumulate in float32 and are rounded once, to nearest even. Integers wrap.
//   min and max: a NaN wins over every number; of +0 and -0 the later operand wins. Which
//   sign and payload a sum or product of two NaNs keeps is not fixed.
//   boolean: any byte but 0 is true, results are 0 or 1; sum, max, bor are "or", prod, min, band
//   are "and". Logical operations of integers likewise give 0 or 1.
using ReduceKernel = void (*)(std::byte* out, std::byte* also, const std::byte* const* inputs,
                              std::size_t n, std::size_t count, Manner manner);

// The best this CPU has; nullptr where `supports` is false.
ReduceKernel reduce_kernel(DType dtype, Op op);

// data[i] /= divisor, the last step of avg; 16-bit floats in float32, rounded once.
using DivideKernel = void (*)(std::byte* data, std::size_t count, std::size_t divisor);

// nullptr for all but the floating-point types.
DivideKernel divide_kernel(DType dtype);

// One read, two writes. `also` may be null; `out` and `also` may each equal `input`.
void copy_to_both(std::byte* out, std::byte* also, const std::byte* input, std::size_t bytes,
                  Manner manner = {});

// After stores past the caches, before others hear of them.
void end_streaming();

// "avx512", "avx2" or "baseline"; on 64-bit ARM "neon".
const char* instruction_set();

// For tests: what the functions above use from now on (kernels taken earlier stay as they were).
// std::invalid_argument, listing what this CPU has, for any other name.
void use_instruction_set(const char* name);

}  // namespace transports
