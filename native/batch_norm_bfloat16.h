// bfloat16 in vectors: float32 without its last 16 bits, rounded to nearest, ties to even.
#pragma once

#include <type_traits>

#include "batch_norm_kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

template <class T> constexpr bool is_half = std::is_same_v<T, BFloat16>;

// The unsigned integers under V, number or vector.
template <class V> struct BitsOf {
  using type = std::uint32_t;
};
template <> struct BitsOf<Vec<float>> {
  typedef std::uint32_t type __attribute__((vector_size(WB_BYTES)));
};

// 16 bits to 32 and back, a vector at a time. One instruction each, of which the compiler makes five. (Without a mask,
// GCC 12 warns of an uninitialised value in its own header.)
using Words = typename BitsOf<Vec<float>>::type;
typedef std::uint16_t HalfWords __attribute__((vector_size(WB_BYTES / 2)));

inline Words to_words(HalfWords v) {
#if defined(__AVX512F__)
  return bits<Words>(_mm512_maskz_cvtepu16_epi32(0xffff, bits<__m256i>(v)));
#elif defined(__AVX2__)
  return bits<Words>(_mm256_cvtepu16_epi32(bits<__m128i>(v)));
#else
  return __builtin_convertvector(v, Words);
#endif
}
inline HalfWords to_half_words(Words v) {
#if defined(__AVX512F__)
  return bits<HalfWords>(_mm512_maskz_cvtepi32_epi16(0xffff, bits<__m512i>(v)));
#elif defined(__AVX2__)
  const __m256i all = bits<__m256i>(v); // of 16 bits at most
  const __m128i low = _mm256_castsi256_si128(all), high = _mm256_extracti128_si256(all, 1);
  return bits<HalfWords>(_mm_packus_epi32(low, high));
#else
  return __builtin_convertvector(v, HalfWords);
#endif
}

constexpr std::uint32_t upper_half = 0xffff0000u;

// v rounded to bfloat16, in the upper half of its bits: to nearest, ties to even. What is left in the lower half means
// nothing. A nan stays one: its mantissa may lie in the half that is cut off, and to round it could carry into the
// sign.
template <class V> inline typename BitsOf<V>::type rounded(V v) {
  using U = typename BitsOf<V>::type;
  const U u = bits<U>(v), nan = U{} + 0x7fc00000u;
  return v == v ? u + (0x7fffu + ((u >> 16) & 1u)) : nan;
}

// exact: v is a bfloat16 already.
template <bool exact, class V> inline typename BitsOf<V>::type upper_bits(V v) {
  if constexpr (exact)
    return bits<typename BitsOf<V>::type>(v);
  else
    return rounded(v);
}

// As it would come back from storage of type T.
template <class T, class V> inline V stored(V v) {
  if constexpr (is_half<T>)
    return bits<V>(rounded(v) & upper_half);
  else
    return v;
}

} // namespace wholebatch::WB_SET
