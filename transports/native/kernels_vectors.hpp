// Vectors, and how each type of element gets into them and out again.
//
// Included by kernels_body.hpp only, once per instruction set. Everything is in an anonymous
// namespace and no standard header that emits shared inline functions is used: the linker keeps one
// copy of such a function for the whole program, and that could be the copy compiled for AVX-512.
//
// A codec says for its type: `Register<lanes>`, the vector in which it is computed; `load` and
// `store`, which convert. A register has at least 16 bytes; a shorter load fills the rest with
// zeros, a shorter store leaves it away.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TRANSPORTS_INLINE [[gnu::always_inline]] inline

namespace transports {
namespace {

#if defined(__AVX512BW__)
constexpr std::size_t vector_bytes = 64;
#elif defined(__AVX2__)
constexpr std::size_t vector_bytes = 32;
#else
constexpr std::size_t vector_bytes = 16;
#endif

constexpr std::size_t larger(std::size_t a, std::size_t b) {
  return a > b ? a : b;
}

template <class T, std::size_t Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <class V>
struct InMemory {  // a vector at any address, over bytes of any type; GCC 12 moves memcpy's 16
                   // bytes as two integers
  typedef V type __attribute__((aligned(1), may_alias));
};
template <class T, std::size_t Lanes>
using Vector = typename VectorOf<T, Lanes>::type;

template <std::size_t Bytes>
struct UnsignedOf;
template <>
struct UnsignedOf<1> {
  using type = std::uint8_t;
};
template <>
struct UnsignedOf<2> {
  using type = std::uint16_t;
};
template <>
struct UnsignedOf<4> {
  using type = std::uint32_t;
};
template <>
struct UnsignedOf<8> {
  using type = std::uint64_t;
};

template <class To, class From>
TRANSPORTS_INLINE To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <std::size_t Bytes, class V>
TRANSPORTS_INLINE V load_bytes(const std::byte* from) {
  if constexpr (Bytes == sizeof(V)) {
    return *reinterpret_cast<const typename InMemory<V>::type*>(from);
  } else {  // through an integer register: no store that the load would have to wait for
    static_assert(sizeof(V) == 16);
    typename UnsignedOf<Bytes>::type low;
    __builtin_memcpy(&low, from, Bytes);
    return as<V>(Vector<std::uint64_t, 2>{low, 0});
  }
}

template <std::size_t Bytes, class V>
TRANSPORTS_INLINE void store_bytes(std::byte* to, V vector) {
  if constexpr (Bytes == sizeof(V)) {
    *reinterpret_cast<typename InMemory<V>::type*>(to) = vector;
  } else {
    static_assert(sizeof(V) == 16);
    const auto low =
        static_cast<typename UnsignedOf<Bytes>::type>(as<Vector<std::uint64_t, 2>>(vector)[0]);
    __builtin_memcpy(to, &low, Bytes);
  }
}

// Elements computed as they are stored. Signed integers use it with their unsigned type, where
// overflow wraps.
template <class T>
struct Plain {
  using Element = T;
  static constexpr std::size_t size = sizeof(T);

  template <std::size_t Lanes>
  using Register = Vector<T, larger(Lanes, 16 / sizeof(T))>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    return load_bytes<Lanes * size, Register<Lanes>>(from);
  }
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> vector) {
    store_bytes<Lanes * size>(to, vector);
  }
};

// Integers as truth values: all bits set for any value but 0; stored as 0 or 1.
template <class T>
struct Truth : Plain<T> {
  template <std::size_t Lanes>
  using Register = typename Plain<T>::template Register<Lanes>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    return as<Register<Lanes>>(Plain<T>::template load<Lanes>(from) != 0);
  }
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> vector) {
    Plain<T>::template store<Lanes>(to, vector & 1);
  }
};

// The low lanes of 16-bit elements, each widened with zeros; and back, keeping the low half of
// each.
template <std::size_t Lanes>
TRANSPORTS_INLINE Vector<std::uint32_t, Lanes> widen(
    Vector<std::uint16_t, larger(Lanes, 8)> halves) {
  if constexpr (Lanes == 4) {
#if defined(__x86_64__)
    return as<Vector<std::uint32_t, 4>>(
        _mm_unpacklo_epi16(as<__m128i>(halves), _mm_setzero_si128()));
#else
    const auto low = as<Vector<std::uint64_t, 2>>(halves)[0];
    return __builtin_convertvector(as<Vector<std::uint16_t, 4>>(low), Vector<std::uint32_t, 4>);
#endif
  } else {
    return __builtin_convertvector(halves, Vector<std::uint32_t, Lanes>);
  }
}

template <std::size_t Lanes>
TRANSPORTS_INLINE Vector<std::uint16_t, larger(Lanes, 8)> narrow(
    Vector<std::uint32_t, Lanes> words) {
  if constexpr (Lanes == 4) {
#if defined(__x86_64__)  // SSE2 packs with signed saturation: extend the sign of the low half, so
                         // that nothing saturates
    const auto extended = _mm_srai_epi32(_mm_slli_epi32(as<__m128i>(words), 16), 16);
    return as<Vector<std::uint16_t, 8>>(_mm_packs_epi32(extended, extended));
#else
    const auto low = __builtin_convertvector(words, Vector<std::uint16_t, 4>);
    return as<Vector<std::uint16_t, 8>>(Vector<std::uint64_t, 2>{as<std::uint64_t>(low), 0});
#endif
  } else {
    return __builtin_convertvector(words, Vector<std::uint16_t, Lanes>);
  }
}

// The upper half of a float32. Rounded to nearest even; a carry out of the significand raises the
// exponent, as it should, up to infinity. A NaN must not be rounded into infinity: it is cut and
// made quiet.
struct BFloat16 {
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Vector<float, Lanes> decode(
      Vector<std::uint16_t, larger(Lanes, 8)> halves) {
    return as<Vector<float, Lanes>>(widen<Lanes>(halves) << 16);
  }
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Vector<std::uint16_t, larger(Lanes, 8)> encode(
      Vector<float, Lanes> value) {
    const auto word = as<Vector<std::uint32_t, Lanes>>(value);
    const auto rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
    const auto quiet = (word >> 16) | 0x40;
    return narrow<Lanes>(value != value ? quiet : rounded);
  }
};

// IEEE binary16: sign, 5 bits of exponent (bias 15), 10 bits of significand.
struct Float16 {
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Vector<float, Lanes> decode(
      Vector<std::uint16_t, larger(Lanes, 8)> halves) {
#if defined(__AVX512BW__)  // the masked form, because GCC 12 warns of its own header in the other
    if constexpr (Lanes == 16)
      return as<Vector<float, 16>>(_mm512_maskz_cvtph_ps(0xffff, as<__m256i>(halves)));
#endif
#if defined(__F16C__)
    if constexpr (Lanes == 8) return as<Vector<float, 8>>(_mm256_cvtph_ps(as<__m128i>(halves)));
    if constexpr (Lanes == 4) return as<Vector<float, 4>>(_mm_cvtph_ps(as<__m128i>(halves)));
#else
    using Words = Vector<std::uint32_t, Lanes>;
    using Floats = Vector<float, Lanes>;
    const Words word = widen<Lanes>(halves);
    const Words sign = (word & 0x8000) << 16;
    const Words magnitude = word & 0x7fff;
    const Words normal = (magnitude << 13) + (Words{} + ((127 - 15) << 23));
    // Below 2^-14 the magnitude counts units of 2^-24. The integer conversion is exact, whatever
    // MXCSR says.
    const Floats units =
        __builtin_convertvector(as<Vector<std::int32_t, Lanes>>(magnitude), Floats);
    const Words subnormal = as<Words>(units * 0x1p-24f);
    const Words infinite = (magnitude << 13) | 0x7f800000;
    const Words nan = infinite | 0x00400000;
    Words result = magnitude < 0x0400 ? subnormal : normal;
    result = magnitude >= 0x7c00 ? infinite : result;
    result = magnitude > 0x7c00 ? nan : result;
    return as<Floats>(result | sign);
#endif
  }
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Vector<std::uint16_t, larger(Lanes, 8)> encode(
      Vector<float, Lanes> value) {
#if defined(__F16C__)
    using Halves = Vector<std::uint16_t, larger(Lanes, 8)>;
    constexpr int nearest_even = 0;
#if defined(__AVX512BW__)
    if constexpr (Lanes == 16)
      return as<Halves>(_mm512_maskz_cvtps_ph(0xffff, as<__m512>(value), nearest_even));
#endif
    if constexpr (Lanes == 8) return as<Halves>(_mm256_cvtps_ph(as<__m256>(value), nearest_even));
    if constexpr (Lanes == 4) return as<Halves>(_mm_cvtps_ph(as<__m128>(value), nearest_even));
#else
    using Words = Vector<std::uint32_t, Lanes>;
    using Floats = Vector<float, Lanes>;
    const Words word = as<Words>(value);
    const Words sign = (word & 0x80000000) >> 16;
    const Words magnitude = word & 0x7fffffff;
    // As in bfloat16, the carry of the rounding runs into the exponent, up to infinity.
    const Words rebiased = magnitude - (Words{} + ((127 - 15) << 23));
    const Words normal = (rebiased + 0xfff + ((rebiased >> 13) & 1)) >> 13;
    // Below 2^-14 the result counts units of 2^-24. Added to 0.5, whose last bit is 2^-24, the
    // value is rounded to them.
    const Words subnormal = as<Words>(as<Floats>(magnitude) + 0.5f) - 0x3f000000;
    const Words nan = ((magnitude >> 13) & 0x3ff) | 0x7e00;
    Words result = magnitude < 0x38800000 ? subnormal : normal;
    result = magnitude >= 0x47800000 ? Words{} + 0x7c00 : result;
    result = magnitude > 0x7f800000 ? nan : result;
    return narrow<Lanes>(result | sign);
#endif
  }
};

// Elements stored in 16 bits and computed as float32.
template <class Format>
struct Half {
  using Element = float;
  static constexpr std::size_t size = 2;

  template <std::size_t Lanes>
  using Register = Vector<float, larger(Lanes, 4)>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    const auto halves = load_bytes<Lanes * size, Vector<std::uint16_t, larger(Lanes, 8)>>(from);
    return Format::template decode<larger(Lanes, 4)>(halves);
  }
  template <std::size_t Lanes>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> vector) {
    store_bytes<Lanes * size>(to, Format::template encode<larger(Lanes, 4)>(vector));
  }
};

}  // namespace
}  // namespace transports
