// Some elements at a time, in what is computed with.
#pragma once

#include <algorithm>
#include <type_traits>

#include "batch_norm_bfloat16.h"

// Everything that such a function calls is inlined: what it does for a unit must not become a function of its own, that
// reads its surroundings from memory each time.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) // that would take minutes to compile
#define WB_FLAT
#else
#define WB_FLAT __attribute__((flatten))
#endif

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

template <class U, class A> inline U everywhere(A value) {
  return each([value](auto zero) { return zero + value; }, U{});
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

// f(place in storage, place in units) for the columns that are not at the same place in both: those before the one
// returned.
template <class T, class F> inline std::int64_t each_place(std::int64_t columns, const F &f) {
  constexpr int W = width<Accumulator<T>>;
  std::int64_t j = 0;
  if constexpr (is_half<T>)
    for (; j + 2 * W <= columns; j += 2 * W)
      for (int i = 0; i < W; ++i) {
        f(j + 2 * i, j + i);
        f(j + 2 * i + 1, j + W + i);
      }
  return j;
}
template <class T, class X> inline void as_units(const X *__restrict from, std::int64_t columns, X *__restrict to) {
  const std::int64_t rest = each_place<T>(columns, [&](std::int64_t i, std::int64_t unit) { to[unit] = from[i]; });
  std::copy(from + rest, from + columns, to + rest);
}
template <class T, class X> inline void as_stored(const X *__restrict from, std::int64_t columns, X *__restrict to) {
  const std::int64_t rest = each_place<T>(columns, [&](std::int64_t i, std::int64_t unit) { to[i] = from[unit]; });
  std::copy(from + rest, from + columns, to + rest);
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
