// Some elements at a time, in what is computed with.
#pragma once

#include <algorithm>
#include <type_traits>

#include "batch_norm_bfloat16.h"

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
