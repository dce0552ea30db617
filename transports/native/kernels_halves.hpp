// 16-bit floats: stored in 16 bits, computed as float32, rounded to nearest even on the way back.
//
// Included by kernels_body.hpp only; see kernels_vectors.hpp.
#pragma once

#include "kernels_vectors.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace transports {
namespace {

// A vector of 16-bit elements, two to a 32-bit word, as two vectors of float32: those of the low
// halves and those of the high halves. So nothing has to be moved between lanes.
template <class V>
struct Pair {
  V low;
  V high;
};

template <class V>
TRANSPORTS_INLINE Pair<V> operator/(Pair<V> values, float divisor) {
  return {values.low / divisor, values.high / divisor};
}

// A format decodes the upper half of a word whose lower half is 0 into a float32, and encodes a
// float32 into the upper half of a word, whatever it leaves in the lower.
template <class Format>
struct PairCodec {
  using Number = float;
  static constexpr std::size_t size = 2;
  static constexpr std::size_t lanes = vector_bytes / 2;

  template <std::size_t Lanes>
  using Words = Vector<std::int32_t, larger(Lanes / 2, 4)>;
  template <std::size_t Lanes>
  using Register = Pair<Vector<float, larger(Lanes / 2, 4)>>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    const auto words = load_bytes<Lanes * 2, Words<Lanes>>(from);
    return {Format::decode(words << 16), Format::decode(words & upper_half)};
  }
  template <std::size_t Lanes, bool Past = false>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> values) {
    const auto low = as<Vector<std::uint32_t, larger(Lanes / 2, 4)>>(
                         Format::template encode<Words<Lanes>>(values.low)) >>
                     16;
    const auto high = Format::template encode<Words<Lanes>>(values.high) & upper_half;
    store_bytes<Lanes * 2, Past>(to, as<Words<Lanes>>(low) | high);
  }

 private:
  static constexpr std::int32_t upper_half = -0x10000;
};

// The upper half of a float32. The carry of the rounding runs into the exponent, as it should, up
// to infinity. It cannot make infinity of a NaN: the lower half of a NaN that came from bfloat16 or
// from the processor is 0, and then nothing is carried.
struct BFloat16 {
  template <class Words>
  TRANSPORTS_INLINE static auto decode(Words word) {
    return as<Vector<float, sizeof(Words) / 4>>(word);
  }
  template <class Words, class Floats>
  TRANSPORTS_INLINE static Words encode(Floats value) {
    const auto word = as<Vector<std::uint32_t, sizeof(Words) / 4>>(value);
    return as<Words>(word + 0x7fff + ((word >> 16) & 1));
  }
};

using BFloat16Codec = PairCodec<BFloat16>;

#if defined(__F16C__)

// IEEE binary16, converted by the processor.
struct Float16Codec {
  using Number = float;
  static constexpr std::size_t size = 2;
  static constexpr std::size_t lanes = vector_bytes / 4;

  template <std::size_t Lanes>
  using Register = Vector<float, larger(Lanes, 4)>;

  template <std::size_t Lanes>
  TRANSPORTS_INLINE static Register<Lanes> load(const std::byte* from) {
    const auto halves = load_bytes<Lanes * 2, Vector<std::uint16_t, larger(Lanes, 8)>>(from);
#if defined(__AVX512F__)  // the masked form, because GCC 12 warns of its own header in the other
    if constexpr (Lanes == 16)
      return as<Register<16>>(_mm512_maskz_cvtph_ps(0xffff, as<__m256i>(halves)));
#endif
    if constexpr (Lanes == 8) return as<Register<8>>(_mm256_cvtph_ps(as<__m128i>(halves)));
    if constexpr (Lanes < 8) return as<Register<4>>(_mm_cvtph_ps(as<__m128i>(halves)));
  }
  template <std::size_t Lanes, bool Past = false>
  TRANSPORTS_INLINE static void store(std::byte* to, Register<Lanes> value) {
    constexpr int nearest_even = 0;
#if defined(__AVX512F__)
    if constexpr (Lanes == 16)
      store_bytes<32, Past>(to, _mm512_maskz_cvtps_ph(0xffff, as<__m512>(value), nearest_even));
#endif
    if constexpr (Lanes == 8)
      store_bytes<16, Past>(to, _mm256_cvtps_ph(as<__m256>(value), nearest_even));
    if constexpr (Lanes < 8)
      store_bytes<Lanes * 2, Past>(to, _mm_cvtps_ph(as<__m128>(value), nearest_even));
  }
};

#else

// IEEE binary16: sign, 5 bits of exponent (bias 15), 10 bits of significand. All comparisons are of
// magnitudes as signed integers, which every processor has.
struct Float16 {
  template <class Words>
  TRANSPORTS_INLINE static auto decode(Words word) {
    using Floats = Vector<float, sizeof(Words) / 4>;
    constexpr std::int32_t rebias = (127 - 15) << 23;
    const Words magnitude = (word & 0x7fffffff) >> 3;  // exponent and significand in their places
    const Words normal = magnitude + rebias;
    // With exponent 0 the first bit of a normal number is missing: put it in, then take its value,
    // 2^-14, away again. All these are normal numbers of float32.
    const Words first_bit = Words{} + ((127 - 14) << 23);
    const Floats subnormal = as<Floats>(magnitude + first_bit) - as<Floats>(first_bit);
    Words result = magnitude < 0x00800000 ? as<Words>(subnormal) : normal;
    result |= (magnitude >= 0x0f800000) & 0x7f800000;  // infinity or NaN
    result |= (magnitude > 0x0f800000) & 0x00400000;   // NaN: quiet
    return as<Floats>(result | (word & sign));
  }
  template <class Words, class Floats>
  TRANSPORTS_INLINE static Words encode(Floats value) {
    constexpr std::int32_t rebias = (127 - 15) << 23;
    const Words word = as<Words>(value);
    const Words magnitude = word & 0x7fffffff;
    // As in bfloat16, the carry of the rounding runs into the exponent.
    const Words normal = (magnitude - rebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Below 2^-14 the result counts units of 2^-24: added to 0.5, whose last bit that is, the value
    // is rounded to them.
    const Words subnormal = as<Words>(as<Floats>(magnitude) + 0.5f) - 0x3f000000;
    Words result = magnitude < 0x38800000 ? subnormal : normal;
    result = magnitude >= 0x47800000 ? Words{} + 0x7c00 : result;
    result |= (magnitude > 0x7f800000) & (0x0200 | ((magnitude >> 13) & 0x03ff));
    return (result << 16) | (word & sign);
  }

 private:
  static constexpr std::int32_t sign = -0x7fffffff - 1;
};

using Float16Codec = PairCodec<Float16>;

#endif

}  // namespace
}  // namespace transports
