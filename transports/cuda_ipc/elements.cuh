// What one element is: its bits in memory, the number they stand for, and how two numbers fold.
//
// Compiled when the program runs, for one pair of a type and an operation: DTYPE and OP are numbers
// of transports/native/kernels.hpp, whose results these are, bit for bit, but for a NaN's sign and
// payload: arithmetic and conversions of a GPU have one NaN only.
//
// Nothing is included, since a compiler at run time need not have headers. A compiler for the CPU
// takes the same text, so that it can be tested without a GPU; what the GPU has instructions for is
// plain C++ there.

enum class DType {
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
enum class Op { sum, prod, min, max, band, bor, bxor, land, lor, lxor };

constexpr DType dtype = static_cast<DType>(DTYPE);
constexpr Op op = static_cast<Op>(OP);
constexpr bool is_float = dtype <= DType::float64;

static_assert(DTYPE >= 0 && dtype <= DType::boolean, "DTYPE: expected 0..12");
static_assert(OP >= 0 && op <= Op::lxor, "OP: expected 0..9");
static_assert(!is_float || op <= Op::max, "bitwise and logical operations are those of integers");

template <int bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = unsigned char;
};
template <>
struct UnsignedOf<2> {
  using type = unsigned short;
};
template <>
struct UnsignedOf<4> {
  using type = unsigned int;
};
template <>
struct UnsignedOf<8> {
  using type = unsigned long long;
};

template <bool condition, class Then, class Else>
struct Either {
  using type = Then;
};
template <class Then, class Else>
struct Either<false, Then, Else> {
  using type = Else;
};

template <int index, class First, class... Rest>
struct Nth : Nth<index - 1, Rest...> {};
template <class First, class... Rest>
struct Nth<0, First, Rest...> {
  using type = First;
};

template <class To, class From>
__device__ inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are neither lost nor made up");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// How each type is computed. `Bits` is what memory holds, `Number` what is computed with, `Ordered`
// what is compared. A fold decodes each operand and encodes its result once.

struct Float16 {
  using Bits = unsigned short;
  using Number = float;
  using Ordered = float;

#if defined(__CUDA_ARCH__)
  __device__ static Number decode(Bits bits) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(bits));
    return number;
  }
  __device__ static Bits encode(Number number) {
    Bits bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
  }
#else
  static Number decode(Bits bits) {
    const unsigned int sign = (bits & 0x8000u) << 16;
    const unsigned int magnitude = (bits & 0x7fffu) << 13;  // float32 puts the fields there
    unsigned int word = magnitude | 0x7f800000u;            // infinity or NaN
    // The exponent's bias is 15, not 127; a product is right for subnormal numbers, too.
    if (magnitude < 0x0f800000u)
      word = same_bits<unsigned int>(same_bits<float>(magnitude) * 0x1p112f);
    return same_bits<float>(sign | word);
  }
  static Bits encode(Number number) {
    const unsigned int word = same_bits<unsigned int>(number);
    const unsigned int magnitude = word & 0x7fffffffu;
    // The carry of the rounding runs into the exponent, as it should, up to infinity.
    unsigned int result = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    // Below 2^-14 the result counts units of 2^-24: added to 0.5, whose last bit that is, the
    // number is rounded to them.
    if (magnitude < 0x38800000u)
      result = same_bits<unsigned int>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    if (magnitude >= 0x47800000u) result = 0x7c00u;
    if (magnitude > 0x7f800000u) result = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    return static_cast<Bits>((word >> 16 & 0x8000u) | result);
  }
#endif
};

// The upper half of a float32: only the way back has to round.
struct BFloat16 {
  using Bits = unsigned short;
  using Number = float;
  using Ordered = float;

  __device__ static Number decode(Bits bits) {
    return same_bits<float>(static_cast<unsigned int>(bits) << 16);
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  __device__ static Bits encode(Number number) {
    Bits bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
  }
#else
  __device__ static Bits encode(Number number) {
    const unsigned int word = same_bits<unsigned int>(number);
    unsigned int rounded = word + 0x7fffu + (word >> 16 & 1u);
    // A GPU's NaN has all bits set but the sign: a carry would make a zero of it.
    if ((word & 0x7fffffffu) > 0x7f800000u) rounded = word | 0x00400000u;
    return static_cast<Bits>(rounded >> 16);
  }
#endif
};

template <class T>
struct Native {
  using Bits = typename UnsignedOf<sizeof(T)>::type;
  using Number = T;
  using Ordered = T;
  __device__ static Number decode(Bits bits) { return same_bits<T>(bits); }
  __device__ static Bits encode(Number number) { return same_bits<Bits>(number); }
};

// Computed without a sign, and at least as wide as int, to which a product of two unsigned short
// would be promoted: so they wrap, and nothing is undefined. Only the order depends on the sign.
template <class T>
struct Integer {
  using Bits = typename UnsignedOf<sizeof(T)>::type;
  using Number = typename Either<sizeof(T) == 8, unsigned long long, unsigned int>::type;
  using Ordered = T;
  __device__ static Number decode(Bits bits) { return bits; }
  __device__ static Bits encode(Number number) { return static_cast<Bits>(number); }
};

// An integer or a boolean as a truth value: any but 0 is true, which is stored as 1.
template <class Stored>
struct Truth {
  using Bits = Stored;
  using Number = unsigned int;
  using Ordered = unsigned int;
  __device__ static Number decode(Bits bits) { return bits != 0; }
  __device__ static Bits encode(Number number) { return static_cast<Bits>(number); }
};

// What an operation is to truth values, numbers of one bit.
__device__ constexpr Op of_one_bit(Op op) {
  switch (op) {
    case Op::prod:
    case Op::min:
    case Op::band:
    case Op::land:
      return Op::band;
    case Op::bxor:
    case Op::lxor:
      return Op::bxor;
    default:
      return Op::bor;
  }
}

// In the order of DType.
using Stored = Nth<DTYPE, Float16, BFloat16, Native<float>, Native<double>, Integer<signed char>,
                   Integer<short>, Integer<int>, Integer<long long>, Integer<unsigned char>,
                   Integer<unsigned short>, Integer<unsigned int>, Integer<unsigned long long>,
                   Truth<unsigned char>>::type;

constexpr bool is_truth = dtype == DType::boolean || op >= Op::land;
using Bits = Stored::Bits;
using Element = Either<is_truth, Truth<Bits>, Stored>::type;
constexpr Op operation = is_truth ? of_one_bit(op) : op;

template <Op operation, class Element>
__device__ inline typename Element::Number combine(typename Element::Number a,
                                                   typename Element::Number b) {
  using Ordered = typename Element::Ordered;
  if constexpr (operation == Op::sum) return a + b;
  if constexpr (operation == Op::prod) return a * b;
  // A comparison is false for a NaN on either side: b is right then, unless a is the NaN. It is
  // false for zeros of either sign, too: the later one is taken.
  if constexpr (operation == Op::min) {
    const auto smaller = static_cast<Ordered>(a) < static_cast<Ordered>(b) ? a : b;
    return a != a ? a : smaller;
  }
  if constexpr (operation == Op::max) {
    const auto greater = static_cast<Ordered>(a) > static_cast<Ordered>(b) ? a : b;
    return a != a ? a : greater;
  }
  if constexpr (operation == Op::band) return a & b;
  if constexpr (operation == Op::bor) return a | b;
  if constexpr (operation == Op::bxor) return a ^ b;
}
