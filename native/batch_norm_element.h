// Batch norm of one element, or of a vector of them: V is a number or a vector of numbers, in what is computed with.
#pragma once

#include <type_traits>

#include "batch_norm_kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

enum class Slope { identity, relu, leaky };

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

// v rounded to bfloat16, in the low half: to nearest, ties to even. A nan stays one: its mantissa may lie in the half
// that is cut off, and to round it could carry into the sign.
template <class V> inline typename BitsOf<V>::type round_half(V v) {
  using U = typename BitsOf<V>::type;
  const U u = bits<U>(v), nan = U{} + 0x7fc0u;
  const U rounded = (u + (0x7fffu + ((u >> 16) & 1u))) >> 16;
  return v == v ? rounded : nan;
}

// As it would come back from storage of type T.
template <class T, class V> inline V stored(V v) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return bits<V>(round_half(v) << 16);
  else
    return v;
}

// From storage: one element, or a vector of them.
template <class V, class T> inline V get(const T *p) {
  constexpr bool half = std::is_same_v<T, BFloat16>, single = std::is_same_v<V, Accumulator<T>>;
  if constexpr (half && single) {
    return bits<float>(static_cast<std::uint32_t>(p->bits) << 16);
  } else if constexpr (half) {
    HalfWords v;
    std::memcpy(&v, p, sizeof(v));
    return bits<V>(to_words(v) << 16);
  } else if constexpr (single) {
    return *p;
  } else {
    return load(p);
  }
}
template <class T> inline Accumulator<T> widen(const T &x) { return get<Accumulator<T>>(&x); }

// Past the caches, see `put`; to an address that is aligned to the vector.
template <class V> inline void stream(void *p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    _mm512_stream_si512(static_cast<__m512i *>(p), bits<__m512i>(v));
  else
    _mm256_stream_si256(static_cast<__m256i *>(p), bits<__m256i>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32)
    _mm256_stream_si256(static_cast<__m256i *>(p), bits<__m256i>(v));
  else
    _mm_stream_si128(static_cast<__m128i *>(p), bits<__m128i>(v));
#else
  std::memcpy(p, &v, sizeof(V));
#endif
}

// Into storage. exact: v is a value of T already, and is not rounded again. past: past the caches, where a set has
// stores that do it: a line that is not read again soon is then not fetched before it is written, and does not push out
// what is.
template <bool exact, class T, class V> inline void put(T *p, V v, [[maybe_unused]] bool past) {
  constexpr bool half = std::is_same_v<T, BFloat16>, single = std::is_same_v<V, Accumulator<T>>;
  if constexpr (half && single) {
    p->bits = static_cast<std::uint16_t>(exact ? bits<std::uint32_t>(v) >> 16 : round_half(v));
  } else if constexpr (half) {
    const HalfWords low = to_half_words(exact ? bits<Words>(v) >> 16 : round_half(v));
    past ? stream(p, low) : static_cast<void>(std::memcpy(static_cast<void *>(p), &low, sizeof(low)));
  } else if constexpr (single) {
    *p = v;
  } else {
    past ? stream(p, v) : store(p, v);
  }
}

// Into the second-level cache, ahead of its use: the processor's own look-ahead ends where a run does, and rests while
// a block is gone over for the second time.
template <class T> inline void prefetch(const T *p) { __builtin_prefetch(p, 0, 2); }

// What is above 0 once it is stored as T: half of bfloat16's least number is the greatest that rounds to 0.
template <class T> constexpr Accumulator<T> least_above = std::is_same_v<T, BFloat16> ? 0x1p-134f : 0;

// t, before it is rounded for the last time; it is rounded wherever an unfused operation would have stored it. The mean
// is taken off first: scale * z + offset would lose the digits that a large mean takes up.
template <class T, bool residual, class V> inline V before_activation(V z, V mean, V scale, V bias, V added) {
  const V t = (z - mean) * scale + bias;
  if constexpr (residual)
    return stored<T>(t) + added;
  return t;
}

// y, to be rounded once more where the slope is not that of a leaky ReLU: what is below 0 is so before it is rounded,
// too. nan stays nan, and -inf under ReLU is 0.
template <class T, Slope kind, class V> inline V activate(V unrounded, Accumulator<T> slope) {
  if constexpr (kind == Slope::relu)
    return unrounded < V{} ? V{} : unrounded;
  if constexpr (kind == Slope::leaky) {
    const V t = stored<T>(unrounded);
    return t > V{} ? t : stored<T>(t * slope);
  }
  return unrounded;
}

// dt = g * dy/dt, a value of T.
template <class T, Slope kind, class V> inline V through_activation(V g, V unrounded, Accumulator<T> slope) {
  const V least = V{} + least_above<T>;
  if constexpr (kind == Slope::relu)
    return unrounded > least ? g : V{};
  if constexpr (kind == Slope::leaky)
    return unrounded > least ? g : stored<T>(g * slope);
  return g;
}

// work.template operator()<kind, residual>() for what these terms and tensors ask for.
template <class T, class Work> inline void specialise(const Tensors<T> &x, Accumulator<T> slope, const Work &work) {
  const bool residual = x.residual != nullptr;
  if (slope == 1)
    residual ? work.template operator()<Slope::identity, true>() : work.template operator()<Slope::identity, false>();
  else if (slope == 0)
    residual ? work.template operator()<Slope::relu, true>() : work.template operator()<Slope::relu, false>();
  else
    residual ? work.template operator()<Slope::leaky, true>() : work.template operator()<Slope::leaky, false>();
}

} // namespace wholebatch::WB_SET
