// One vector of T, as wide as this build's registers. The kernels are compiled once per instruction set; all of a set's
// code lives in a namespace of its own, so that the linker never mixes code for one processor into another's.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#ifndef WB_SET // what is built for more than these instructions has a name of its own
#define WB_SET avx512
#endif
#define WB_BYTES 64
#define WB_TILE_ROWS 12 // 12 x 2 accumulators, 2 of B and 1 of A: 27 of 32 registers
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define WB_SET avx2
#define WB_BYTES 32
#define WB_TILE_ROWS 6 // 6 x 2 accumulators, 2 of B and 1 of A: 15 of 16 registers
#else
#define WB_SET portable
#define WB_BYTES 16
#define WB_TILE_ROWS 6
#endif

namespace wholebatch::WB_SET {

template <class T> struct Integer;
template <> struct Integer<float> {
  using type = std::int32_t;
};
template <> struct Integer<double> {
  using type = std::int64_t;
};

template <class T> constexpr int width = WB_BYTES / static_cast<int>(sizeof(T));

template <class T> struct VecOf {
  typedef T type __attribute__((vector_size(WB_BYTES)));
  typedef T unaligned __attribute__((vector_size(WB_BYTES), aligned(alignof(T)), may_alias));
  typedef typename Integer<T>::type integer __attribute__((vector_size(WB_BYTES)));
};
template <class T> using Vec = typename VecOf<T>::type;
template <class T> using IntVec = typename VecOf<T>::integer;

template <class T> inline Vec<T> load(const T *p) { return *reinterpret_cast<const typename VecOf<T>::unaligned *>(p); }
template <class T> inline void store(T *p, Vec<T> v) { *reinterpret_cast<typename VecOf<T>::unaligned *>(p) = v; }
template <class T> inline Vec<T> all(T value) { return value - Vec<T>{}; }

// a * b + c in one rounding where the set has it. Everything else is compiled without contraction, so that a result
// never depends on what the compiler happened to fuse.
template <class T> inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
#if WB_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return _mm512_fmadd_ps(a, b, c);
  else
    return _mm512_fmadd_pd(a, b, c);
#elif WB_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return _mm256_fmadd_ps(a, b, c);
  else
    return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// a * b + c for a number in memory, which the instruction itself spreads over the lanes: where a core is shared with
// another thread, it is the number of instructions that limits the products.
template <class T> inline Vec<T> fma_of(const T &a, Vec<T> b, Vec<T> c) {
#if WB_BYTES == 64 && defined(__GNUC__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(a));
  else
    asm("vfmadd231pd %2%{1to8%}, %1, %0" : "+v"(c) : "v"(b), "m"(a));
  return c;
#else
  return fma<T>(all(a), b, c);
#endif
}

// The lower half of a vector: for the last columns of a panel, where its upper half would be padding. It takes half as
// long on processors whose units are half as wide as their registers, and no longer on others.
constexpr bool has_halves = WB_BYTES == 64;
template <class T> struct HalfOf {
  typedef T type __attribute__((vector_size(WB_BYTES / 2)));
  typedef T unaligned __attribute__((vector_size(WB_BYTES / 2), aligned(alignof(T)), may_alias));
};
template <class T> using Half = typename HalfOf<T>::type;
template <class T> inline Half<T> load_half(const T *p) {
  return *reinterpret_cast<const typename HalfOf<T>::unaligned *>(p);
}
#if WB_BYTES == 64
// (Without the header's own casts, in which GCC 12 sees uninitialised values.)
template <class T, int... I> inline Half<T> lower(Vec<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, I...);
}
template <class T> inline Half<T> lower(Vec<T> v) {
  return lower<T>(v, std::make_integer_sequence<int, width<T> / 2>{});
}
// With zeros above.
template <class T, int... I> inline Vec<T> whole(Half<T> v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, Half<T>{}, I...);
}
template <class T> inline Vec<T> whole(Half<T> v) { return whole<T>(v, std::make_integer_sequence<int, width<T>>{}); }
template <class T> inline Half<T> fma_half(Half<T> a, Half<T> b, Half<T> c) {
  if constexpr (sizeof(T) == 4)
    return _mm256_fmadd_ps(a, b, c);
  else
    return _mm256_fmadd_pd(a, b, c);
}
#endif

// As many doubles as a vector of T has lanes.
template <class T> struct DoublesOf {
  typedef double type __attribute__((vector_size(width<T> * sizeof(double))));
  typedef double unaligned __attribute__((vector_size(width<T> * sizeof(double)), aligned(alignof(double)), may_alias));
};
template <class T> using Doubles = typename DoublesOf<T>::type;
template <class T> inline Doubles<T> to_doubles(Vec<T> v) { return __builtin_convertvector(v, Doubles<T>); }
template <class T> inline Vec<T> to_vector(Doubles<T> v) { return __builtin_convertvector(v, Vec<T>); }
template <class T> inline Doubles<T> load_doubles(const double *p) {
  return *reinterpret_cast<const typename DoublesOf<T>::unaligned *>(p);
}
template <class T> inline void store_doubles(double *p, Doubles<T> v) {
  *reinterpret_cast<typename DoublesOf<T>::unaligned *>(p) = v;
}

template <class To, class From> inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// The sum of the lanes, pairwise, in one fixed order: each stage adds the other half, turned around.
template <class T, int H, int... I> inline Vec<T> add_half(Vec<T> v, std::integer_sequence<int, I...>) {
  return v + __builtin_shufflevector(v, v, (I ^ H)...);
}
template <class T, int H = width<T> / 2> inline T sum_lanes(Vec<T> v) {
  v = add_half<T, H>(v, std::make_integer_sequence<int, width<T>>{});
  if constexpr (H > 1)
    return sum_lanes<T, H / 2>(v);
  return v[0];
}

// One stage of a transposition: swaps the squares of side H off the diagonal.
template <class T, int H, int... I> inline void swap_squares(Vec<T> &a, Vec<T> &b, std::integer_sequence<int, I...>) {
  constexpr int W = width<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((I & H) ? W + I - H : I)...);
  b = __builtin_shufflevector(a, b, ((I & H) ? W + I : I + H)...);
  a = low;
}
// A square of vectors, in registers: rows become columns.
template <class T, int H = width<T> / 2> inline void transpose_square(Vec<T> (&rows)[width<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < width<T>; ++i)
    if ((i & H) == 0)
      swap_squares<T, H>(rows[i], rows[i + H], std::make_integer_sequence<int, width<T>>{});
  if constexpr (H > 1)
    transpose_square<T, H / 2>(rows);
}

} // namespace wholebatch::WB_SET
