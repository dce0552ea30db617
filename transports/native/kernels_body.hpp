// The kernels themselves. Each kernels_<instruction set>.cpp names its table and includes this
// file:
//
//     #define TRANSPORTS_KERNEL_TABLE avx2_kernels
//     #define TRANSPORTS_KERNEL_NAME "avx2"
//
// All instruction sets run the same operations on each element in the same order, in vectors of
// different length, so all give the same bits; but for the NaN of two NaNs, where compilers may
// swap the operands of a sum or product.
#include "kernels_halves.hpp"
#include "kernels_table.hpp"
#include "kernels_vectors.hpp"

namespace transports {
namespace {

// What a fold does to two vectors.

struct Sum {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    return a + b;
  }
};
struct Prod {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    return a * b;
  }
};
struct Min {  // the comparison is false for a NaN on either side: b is right then, unless a is the
              // NaN
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    const V smaller = a < b ? a : b;
    return a != a ? a : smaller;
  }
};
struct Max {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    const V greater = a > b ? a : b;
    return a != a ? a : greater;
  }
};
struct And {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    return a & b;
  }
};
struct Or {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    return a | b;
  }
};
struct Xor {
  template <class V>
  TRANSPORTS_INLINE static V fold(V a, V b) {
    return a ^ b;
  }
};

template <class Operation, class V>
TRANSPORTS_INLINE V fold(V a, V b) {
  return Operation::fold(a, b);
}
template <class Operation, class V>
TRANSPORTS_INLINE Pair<V> fold(Pair<V> a, Pair<V> b) {
  return {Operation::fold(a.low, b.low), Operation::fold(a.high, b.high)};
}

// How far ahead of a long read the processor is told of it. Hardware prefetches what lies in memory
// or in a cache of its own, but hardly what another core has just written: without this, two cores
// that share no cache exchange a quarter of the bytes.
constexpr std::size_t ahead = 16 * line_bytes;

// Asks for the lines of `Bytes` bytes that lie `ahead` of `from`.
template <std::size_t Bytes>
TRANSPORTS_INLINE void ask_ahead(const std::byte* from) {
  for (std::size_t at = 0; at < Bytes; at += line_bytes)
    __builtin_prefetch(from + ahead + at, 0, 3);
}

// Where a fold reads: two inputs, by far the most common case, kept in registers; or any number of
// them.
struct Two {
  const std::byte* first;
  const std::byte* second;

  template <class Visit>
  TRANSPORTS_INLINE void rest(Visit visit) const {
    visit(second);
  }
  template <std::size_t Bytes>
  TRANSPORTS_INLINE void ask(std::size_t offset) const {
    ask_ahead<Bytes>(first + offset);
    ask_ahead<Bytes>(second + offset);
  }
};
struct Many {
  const std::byte* first;
  const std::byte* const* inputs;
  std::size_t n;

  template <class Visit>
  TRANSPORTS_INLINE void rest(Visit visit) const {
    for (std::size_t i = 1; i < n; ++i) visit(inputs[i]);
  }
  template <std::size_t Bytes>
  TRANSPORTS_INLINE void ask(std::size_t offset) const {
    for (std::size_t i = 0; i < n; ++i) ask_ahead<Bytes>(inputs[i] + offset);
  }
};

template <class Codec, class Operation, class Sources>
struct Fold {
  std::byte* out;
  std::byte* also;
  Sources sources;
  bool past;       // `out` is stored past the caches; then it is aligned where a block begins
  bool also_past;  // ... and `also`

  static constexpr std::size_t element = Codec::size;

  template <std::size_t Elements>
  TRANSPORTS_INLINE void ask(std::size_t begin) const {
    sources.template ask<Elements * element>(begin * element);
  }

  // `Vectors` vectors of `Lanes` elements from element `begin` on. All reads come before the first
  // write: out may be an input.
  template <std::size_t Lanes, std::size_t Vectors>
  TRANSPORTS_INLINE void block(std::size_t begin) const {
    constexpr std::size_t stride = Lanes * Codec::size;
    const std::size_t offset = begin * Codec::size;
    typename Codec::template Register<Lanes> result[Vectors];
    for (std::size_t v = 0; v < Vectors; ++v)
      result[v] = Codec::template load<Lanes>(sources.first + offset + v * stride);
    sources.rest([&](const std::byte* input) __attribute__((always_inline)) {
      for (std::size_t v = 0; v < Vectors; ++v)
        result[v] =
            fold<Operation>(result[v], Codec::template load<Lanes>(input + offset + v * stride));
    });
    if (Lanes == Codec::lanes && past)
      for (std::size_t v = 0; v < Vectors; ++v)
        Codec::template store<Lanes, Lanes == Codec::lanes>(out + offset + v * stride, result[v]);
    else
      for (std::size_t v = 0; v < Vectors; ++v)
        Codec::template store<Lanes>(out + offset + v * stride, result[v]);
    if (also == nullptr) return;
    if (Lanes == Codec::lanes && also_past)
      for (std::size_t v = 0; v < Vectors; ++v)
        Codec::template store<Lanes, Lanes == Codec::lanes>(also + offset + v * stride, result[v]);
    else
      for (std::size_t v = 0; v < Vectors; ++v)
        Codec::template store<Lanes>(also + offset + v * stride, result[v]);
  }
};

// Calls block<Lanes, Vectors>(begin) over elements from `begin` to `count`: four vectors at a time,
// then one, then halves of a vector down to one element. What lies ahead is asked for only as far
// as there is any, `follows` elements beyond the last: further on another core may be writing.
template <std::size_t Lanes, class Blocks>
TRANSPORTS_INLINE void cover_rest(const Blocks& blocks, std::size_t begin, std::size_t rest) {
  if ((rest & Lanes) != 0) {
    blocks.template block<Lanes, 1>(begin);
    begin += Lanes;
  }
  if constexpr (Lanes > 1) cover_rest<Lanes / 2>(blocks, begin, rest);
}

template <std::size_t Lanes, class Blocks>
TRANSPORTS_INLINE void cover(const Blocks& blocks, std::size_t count, std::size_t begin = 0,
                             std::size_t follows = 0) {
  if (count - begin >= Lanes) {
    constexpr std::size_t further = ahead / Blocks::element;
    for (; count - begin >= 4 * Lanes && count - begin + follows >= 4 * Lanes + further;
         begin += 4 * Lanes) {
      blocks.template ask<4 * Lanes>(begin);
      blocks.template block<Lanes, 4>(begin);
    }
    for (; count - begin >= 4 * Lanes; begin += 4 * Lanes) blocks.template block<Lanes, 4>(begin);
    for (; count - begin >= Lanes; begin += Lanes) blocks.template block<Lanes, 1>(begin);
  }
  cover_rest<Lanes / 2>(blocks, begin, count - begin);
}

// Elements, one by one, until a store past the caches meets an aligned address; 0 if it never does.
template <std::size_t Stored, class Blocks>
TRANSPORTS_INLINE std::size_t align(Blocks& blocks, std::size_t count) {
  const auto out = reinterpret_cast<std::uintptr_t>(blocks.out);
  const auto also = reinterpret_cast<std::uintptr_t>(blocks.also);
  const std::size_t gap = -out % Stored;
  if (gap % Blocks::element != 0) blocks.past = false;
  if (!blocks.past || also % Stored != out % Stored) blocks.also_past = false;
  if (!blocks.past) return 0;
  const std::size_t head = gap / Blocks::element < count ? gap / Blocks::element : count;
  for (std::size_t i = 0; i < head; ++i) blocks.template block<1, 1>(i);
  return head;
}

template <std::size_t Lanes, std::size_t Stored, class Blocks>
TRANSPORTS_INLINE void cover_from_aligned(Blocks blocks, std::size_t count, std::size_t follows) {
  cover<Lanes>(blocks, count, blocks.past ? align<Stored>(blocks, count) : 0, follows);
}

template <bool Twice>
struct Copy {
  std::byte* out;
  std::byte* also;
  const std::byte* input;
  bool past;
  bool also_past;
  static constexpr std::size_t element = 1;

  template <std::size_t Elements>
  TRANSPORTS_INLINE void ask(std::size_t begin) const {
    ask_ahead<Elements>(input + begin);
  }

  template <std::size_t Lanes, std::size_t Vectors>
  TRANSPORTS_INLINE void block(std::size_t begin) const {
    Plain<std::uint8_t>::Register<Lanes> bytes[Vectors];
    for (std::size_t v = 0; v < Vectors; ++v)
      bytes[v] = Plain<std::uint8_t>::load<Lanes>(input + begin + v * Lanes);
    if (Lanes == vector_bytes && past)
      for (std::size_t v = 0; v < Vectors; ++v)
        Plain<std::uint8_t>::store<Lanes, Lanes == vector_bytes>(out + begin + v * Lanes, bytes[v]);
    else
      for (std::size_t v = 0; v < Vectors; ++v)
        Plain<std::uint8_t>::store<Lanes>(out + begin + v * Lanes, bytes[v]);
    if constexpr (Twice) {
      if (Lanes == vector_bytes && also_past)
        for (std::size_t v = 0; v < Vectors; ++v)
          Plain<std::uint8_t>::store<Lanes, Lanes == vector_bytes>(also + begin + v * Lanes,
                                                                   bytes[v]);
      else
        for (std::size_t v = 0; v < Vectors; ++v)
          Plain<std::uint8_t>::store<Lanes>(also + begin + v * Lanes, bytes[v]);
    }
  }
};

void copy_once(std::byte* out, const std::byte* input, std::size_t bytes, Manner manner) {
  const bool past = manner.stores != Stores::cached;
  cover_from_aligned<vector_bytes, vector_bytes>(Copy<false>{out, nullptr, input, past, false},
                                                 bytes, manner.follows);
}

void copy(std::byte* out, std::byte* also, const std::byte* input, std::size_t bytes,
          Manner manner) {
  if (also == nullptr || also == input) {
    if (out != input) copy_once(out, input, bytes, manner);
  } else if (out == input) {
    copy_once(also, input, bytes, {Stores::cached, manner.follows});
  } else {
    const bool past = manner.stores != Stores::cached;
    cover_from_aligned<vector_bytes, vector_bytes>(
        Copy<true>{out, also, input, past, manner.stores == Stores::both_past_caches}, bytes,
        manner.follows);
  }
}

template <class Codec, class Operation, class Sources>
TRANSPORTS_INLINE void fold_all(std::byte* out, std::byte* also, Sources sources, std::size_t count,
                                Manner manner) {
  const bool past = manner.stores != Stores::cached;
  cover_from_aligned<Codec::lanes, Codec::lanes * Codec::size>(
      Fold<Codec, Operation, Sources>{out, also, sources, past,
                                      manner.stores == Stores::both_past_caches},
      count, manner.follows);
}

// Apart from `reduce`, so that the common case saves no registers for this one.
template <class Codec, class Operation>
[[gnu::noinline]] void reduce_many(std::byte* out, std::byte* also, const std::byte* const* inputs,
                                   std::size_t n, std::size_t count, Manner manner) {
  fold_all<Codec, Operation>(out, also, Many{inputs[0], inputs, n}, count, manner);
}

template <class Codec, class Operation>
[[gnu::noinline]] void reduce(std::byte* out, std::byte* also, const std::byte* const* inputs,
                              std::size_t n, std::size_t count, Manner manner) {
  if (n == 2) [[likely]]
    return fold_all<Codec, Operation>(out, also, Two{inputs[0], inputs[1]}, count, manner);
  if (n == 1)
    return copy(out, also, inputs[0], count * Codec::size,
                {manner.stores, manner.follows * Codec::size});
  return reduce_many<Codec, Operation>(out, also, inputs, n, count, manner);
}

// Bitwise operations do not care where an element ends: one kernel for all sizes.
template <class Operation, std::size_t Size>
void reduce_bits(std::byte* out, std::byte* also, const std::byte* const* inputs, std::size_t n,
                 std::size_t count, Manner manner) {
  reduce<Plain<std::uint8_t>, Operation>(out, also, inputs, n, count * Size,
                                         {manner.stores, manner.follows * Size});
}

template <class Codec>
struct Divide {
  std::byte* data;
  typename Codec::Number divisor;
  static constexpr std::size_t element = Codec::size;

  template <std::size_t Elements>
  TRANSPORTS_INLINE void ask(std::size_t begin) const {
    ask_ahead<Elements * element>(data + begin * element);
  }

  template <std::size_t Lanes, std::size_t Vectors>
  TRANSPORTS_INLINE void block(std::size_t begin) const {
    for (std::size_t v = 0; v < Vectors; ++v) {
      std::byte* at = data + (begin + v * Lanes) * Codec::size;
      Codec::template store<Lanes>(at, Codec::template load<Lanes>(at) / divisor);
    }
  }
};

template <class Codec>
void divide(std::byte* data, std::size_t count, std::size_t divisor) {
  cover<Codec::lanes>(Divide<Codec>{data, static_cast<typename Codec::Number>(divisor)}, count);
}

constexpr void set(KernelTable& table, DType dtype, Op op, ReduceKernel kernel) {
  table.reduce[static_cast<std::size_t>(dtype)][static_cast<std::size_t>(op)] = kernel;
}

template <class Codec>
constexpr void set_float(KernelTable& table, DType dtype) {
  set(table, dtype, Op::sum, reduce<Codec, Sum>);
  set(table, dtype, Op::prod, reduce<Codec, Prod>);
  set(table, dtype, Op::min, reduce<Codec, Min>);
  set(table, dtype, Op::max, reduce<Codec, Max>);
  table.divide[static_cast<std::size_t>(dtype)] = divide<Codec>;
}

// Only the order of integers depends on their sign.
template <class Ordered, class Unsigned>
constexpr void set_integer(KernelTable& table, DType dtype) {
  set(table, dtype, Op::sum, reduce<Plain<Unsigned>, Sum>);
  set(table, dtype, Op::prod, reduce<Plain<Unsigned>, Prod>);
  set(table, dtype, Op::min, reduce<Plain<Ordered>, Min>);
  set(table, dtype, Op::max, reduce<Plain<Ordered>, Max>);
  set(table, dtype, Op::band, reduce_bits<And, sizeof(Unsigned)>);
  set(table, dtype, Op::bor, reduce_bits<Or, sizeof(Unsigned)>);
  set(table, dtype, Op::bxor, reduce_bits<Xor, sizeof(Unsigned)>);
  set(table, dtype, Op::land, reduce<Truth<Unsigned>, And>);
  set(table, dtype, Op::lor, reduce<Truth<Unsigned>, Or>);
  set(table, dtype, Op::lxor, reduce<Truth<Unsigned>, Xor>);
}

constexpr void set_boolean(KernelTable& table, DType dtype) {
  constexpr Op conjunctions[] = {Op::prod, Op::min, Op::band, Op::land};
  constexpr Op disjunctions[] = {Op::sum, Op::max, Op::bor, Op::lor};
  constexpr Op parities[] = {Op::bxor, Op::lxor};
  for (const Op op : conjunctions) set(table, dtype, op, reduce<Truth<std::uint8_t>, And>);
  for (const Op op : disjunctions) set(table, dtype, op, reduce<Truth<std::uint8_t>, Or>);
  for (const Op op : parities) set(table, dtype, op, reduce<Truth<std::uint8_t>, Xor>);
}

constexpr KernelTable make_table() {
  KernelTable table{TRANSPORTS_KERNEL_NAME, {}, {}, copy};
  set_float<Float16Codec>(table, DType::float16);
  set_float<BFloat16Codec>(table, DType::bfloat16);
  set_float<Plain<float>>(table, DType::float32);
  set_float<Plain<double>>(table, DType::float64);
  set_integer<std::int8_t, std::uint8_t>(table, DType::int8);
  set_integer<std::int16_t, std::uint16_t>(table, DType::int16);
  set_integer<std::int32_t, std::uint32_t>(table, DType::int32);
  set_integer<std::int64_t, std::uint64_t>(table, DType::int64);
  set_integer<std::uint8_t, std::uint8_t>(table, DType::uint8);
  set_integer<std::uint16_t, std::uint16_t>(table, DType::uint16);
  set_integer<std::uint32_t, std::uint32_t>(table, DType::uint32);
  set_integer<std::uint64_t, std::uint64_t>(table, DType::uint64);
  set_boolean(table, DType::boolean);
  return table;
}

}  // namespace

constinit const KernelTable TRANSPORTS_KERNEL_TABLE = make_table();

}  // namespace transports
