// Elements on their way from storage and into it, some at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "batch_norm_kernels.h"
#include "simd.h"

// Everything that such a function calls is inlined: what it does for a unit must not become a function of its own, that
// reads its surroundings from memory each time.
#define WB_FLAT __attribute__((flatten))

namespace wholebatch::WB_SET {

// N vectors, or one number, in what is computed with. A whole unit of bfloat16 fills two vectors, from one of storage:
// the elements at even places, whose bits are shifted up, and those at odd places, whose bits are where they belong. To
// spread out every vector by itself takes twice the instructions, and to pack it again one more.
template <class V, int N> struct Unit {
  static constexpr int vectors = N;
  V of[N];
};
template <class T> constexpr bool is_half = std::is_same_v<T, BFloat16>;
template <class T> using Whole = Unit<Vec<Accumulator<T>>, is_half<T> ? 2 : 1>;
template <class T> using Vector = Unit<Vec<Accumulator<T>>, 1>; // in the order of storage
template <class T> using Single = Unit<Accumulator<T>, 1>;
template <class U> constexpr bool is_single = std::is_floating_point_v<decltype(U::of[0] + 0)>;
template <class T, class U> constexpr int places = sizeof(U) / sizeof(Accumulator<T>);

// f for each vector of units, by constant places: where a loop counts them, the compiler keeps units in memory.
template <class F, class V, int N, class... Vs> inline Unit<V, N> each(const F &f, Unit<V, N> a, Unit<Vs, N>... rest) {
  if constexpr (N == 1)
    return {{f(a.of[0], rest.of[0]...)}};
  else
    return {{f(a.of[0], rest.of[0]...), f(a.of[1], rest.of[1]...)}};
}
template <class V, int N> inline Unit<V, N> operator+(Unit<V, N> a, Unit<V, N> b) {
  return each([](V x, V y) { return x + y; }, a, b);
}
template <class V, int N> inline Unit<V, N> operator-(Unit<V, N> a, Unit<V, N> b) {
  return each([](V x, V y) { return x - y; }, a, b);
}
template <class V, int N> inline Unit<V, N> operator*(Unit<V, N> a, Unit<V, N> b) {
  return each([](V x, V y) { return x * y; }, a, b);
}

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

// v < 0 ? 0 : v, which is what the processor's maximum of 0 and v is, for nan and -0 too.
template <class V> inline V not_below_zero(V v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>)
    return _mm512_maskz_max_ps(0xffff, V{}, v);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>)
    return _mm256_max_ps(V{}, v);
#endif
  return v < V{} ? V{} : v;
}

// As it would come back from storage of type T.
template <class T, class V> inline V stored(V v) {
  if constexpr (is_half<T>)
    return bits<V>(rounded(v) & upper_half);
  else
    return v;
}

// From storage.
template <class U, class T> inline U get(const T *p) {
  if constexpr (is_half<T> && is_single<U>) {
    return {{bits<float>(static_cast<std::uint32_t>(p->bits) << 16)}};
  } else if constexpr (is_half<T> && U::vectors == 2) {
    static_assert(std::endian::native == std::endian::little, "the element at the even place is the lower half");
    Words v;
    std::memcpy(&v, p, sizeof(v));
    return {{bits<Vec<float>>(v << 16), bits<Vec<float>>(v & upper_half)}};
  } else if constexpr (is_half<T>) {
    HalfWords v;
    std::memcpy(&v, p, sizeof(v));
    return {{bits<Vec<float>>(to_words(v) << 16)}};
  } else if constexpr (is_single<U>) {
    return {{*p}};
  } else {
    return {{load(p)}};
  }
}

// Numbers that lie as a unit has them, see `as_units`.
template <class U, class A> inline U take(const A *p) {
  if constexpr (is_single<U>)
    return {{*p}};
  else if constexpr (U::vectors == 1)
    return {{load(p)}};
  else
    return {{load(p), load(p + width<A>)}};
}
template <class U, class A> inline void lay(A *p, U unit) {
  if constexpr (is_single<U>)
    *p = unit.of[0];
  else
    store(p, unit.of[0]);
  if constexpr (U::vectors == 2)
    store(p + width<A>, unit.of[1]);
}

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

// Into storage. exact: it is a value of T already, and is not rounded again. past: past the caches, where a set has
// stores that do it: a line that is not read again soon is then not fetched before it is written, and does not push out
// what is.
template <bool exact, class T, class V, int N>
inline void put(T *p, const Unit<V, N> &unit, [[maybe_unused]] bool past) {
  const auto write = [&](auto v) {
    past ? stream(p, v) : static_cast<void>(std::memcpy(static_cast<void *>(p), &v, sizeof(v)));
  };
  if constexpr (is_half<T> && is_single<Unit<V, N>>)
    p->bits = static_cast<std::uint16_t>(upper_bits<exact>(unit.of[0]) >> 16);
  else if constexpr (is_half<T> && N == 2)
    write((upper_bits<exact>(unit.of[0]) >> 16) | (upper_bits<exact>(unit.of[1]) & upper_half));
  else if constexpr (is_half<T>)
    write(to_half_words(upper_bits<exact>(unit.of[0]) >> 16));
  else if constexpr (is_single<Unit<V, N>>)
    *p = unit.of[0];
  else
    write(unit.of[0]);
}

// Into the second-level cache, ahead of its use: the processor's own look-ahead ends where a run does, and rests while
// a block is gone over for the second time.
template <class T> inline void prefetch(const T *p) { __builtin_prefetch(p, 0, 2); }

// work.template operator()<U>(j) along a run: in whole units, and in vectors and single elements where it ends.
template <class T, class Work>
inline __attribute__((always_inline)) void along(std::int64_t length, const Work &work, std::int64_t j = 0) {
  for (constexpr int step = places<T, Whole<T>>; j + step <= length; j += step)
    work.template operator()<Whole<T>>(j);
  if constexpr (is_half<T>)
    for (constexpr int step = places<T, Vector<T>>; j + step <= length; j += step)
      work.template operator()<Vector<T>>(j);
  for (; j < length; ++j)
    work.template operator()<Single<T>>(j);
}

// Columns in the order that whole units have them, and back.
template <class T, class X> inline void as_units(const X *__restrict from, std::int64_t length, X *__restrict to) {
  constexpr int W = width<Accumulator<T>>;
  std::int64_t j = 0;
  if constexpr (is_half<T>)
    for (; j + 2 * W <= length; j += 2 * W)
      for (int i = 0; i < W; ++i) {
        to[j + i] = from[j + 2 * i];
        to[j + W + i] = from[j + 2 * i + 1];
      }
  std::copy(from + j, from + length, to + j);
}
template <class T, class X> inline void as_stored(const X *__restrict from, std::int64_t length, X *__restrict to) {
  constexpr int W = width<Accumulator<T>>;
  std::int64_t j = 0;
  if constexpr (is_half<T>)
    for (; j + 2 * W <= length; j += 2 * W)
      for (int i = 0; i < W; ++i) {
        to[j + 2 * i] = from[j + i];
        to[j + 2 * i + 1] = from[j + W + i];
      }
  std::copy(from + j, from + length, to + j);
}

// Terms of columns, in the order that units have them.
template <class T> class Laid {
public:
  using A = Accumulator<T>;
  Laid(const Terms<A> &terms, std::int64_t columns) : terms_(terms) {
    if constexpr (is_half<T>) {
      A *to = laid_;
      for (const A **term : {&terms_.mean, &terms_.rstd, &terms_.scale, &terms_.bias, &terms_.first, &terms_.second})
        if (*term != nullptr) {
          as_units<T>(*term, columns, to);
          *term = to;
          to += strip_columns;
        }
    }
  }
  const Terms<A> &terms() const { return terms_; }

private:
  Terms<A> terms_;
  alignas(64) A laid_[is_half<T> ? 6 * strip_columns : 1];
};

} // namespace wholebatch::WB_SET
