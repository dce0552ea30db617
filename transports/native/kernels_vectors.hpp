// Vectors, and how each type of element gets into them and out again.
//
// Included by kernels_body.hpp only, once per instruction set. Everything is in an anonymous
// namespace and no standard header that emits shared inline functions is used: the linker keeps one
// copy of such a function for the whole program, and that could be the copy compiled for AVX-512.
//
// A codec says for its type: `Register<lanes>`, the vector in which it is computed; `load` and
// `store`, which convert. A register has at least 16 bytes; a shorter load fills the rest with
// zeros, a shorter store leaves it away. A store of whole vectors goes past the caches if asked to.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>  // its functions are always inlined
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

constexpr std::size_t line_bytes = 64;  // of a cache

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

// A store past the caches, to an address that is a multiple of the vector's length.
template <class V>
TRANSPORTS_INLINE void stream_vector(std::byte* to, V vector) {
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16)
    return _mm_stream_si128(reinterpret_cast<__m128i*>(to), as<__m128i>(vector));
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), as<__m256i>(vector));
#endif
#if defined(__AVX512BW__)
  if constexpr (sizeof(V) == 64)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), as<__m512i>(vector));
#endif
#else
  *reinterpret_cast<typename InMemory<V>::type*>(to) = vector;
#endif
}

template <std::size_t Bytes, bool Past, class V>
TRANSPORTS_INLINE void store_bytes(std::byte* to, V vector) {
  if constexpr (Bytes == sizeof(V) && Past) {
    stream_vector(to, vector);
  } else if constexpr (Bytes == sizeof(V)) {
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
  using Number = T;
  static constexpr std::size_t size = sizeof(T);
  static constexpr std::size_t lanes = vector_bytes / sizeof(T);

  template <std::size_t Lanes>
  using Register = Vector<T, larger(Lanes, 16 / sizeof(T))>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    return load_bytes<Lanes * size, Register<Lanes>>(from);
  }
  template <std::size_t Lanes, bool Past = false>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> vector) {
    store_bytes<Lanes * size, Past>(to, vector);
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
  template <std::size_t Lanes, bool Past = false>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> vector) {
    Plain<T>::template store<Lanes, Past>(to, vector & 1);
  }
};

}  // namespace
}  // namespace transports
