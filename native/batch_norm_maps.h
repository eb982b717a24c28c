// What is written element by element: y forward, dz and the residual's gradient backward.
#pragma once

#include <algorithm>

#include "batch_norm_element.h"

namespace wholebatch::WB_SET {

// A term where every element has its own column. In the caches four rows are done at a time, so that it is loaded once
// for the four; in memory one, which the processor foresees.
template <class A> struct PerColumn {
  static constexpr int rows = 4;
  const A *term;
  template <class U> U at(std::int64_t j) const { return take<U>(term + j); }
};

// A term where all elements are one channel's.
template <class A> struct PerChannel {
  static constexpr int rows = 1;
  A value;
  explicit PerChannel(const A *term) : value(*term) {}
  template <class U> U at(std::int64_t) const { return everywhere<U>(value); }
};

// y of the elements at i.
template <class T, Slope kind, bool residual, class P> struct Apply {
  using A = Accumulator<T>;
  Tensors<T> x; // a copy: behind a reference, a store would have the compiler load its pointers again
  P mean, scale, bias;
  A slope;

  Apply(const Tensors<T> &x, const Terms<A> &terms)
      : x(x), mean(terms.mean), scale(terms.scale), bias(terms.bias), slope(terms.slope) {}

  void expect(std::int64_t i) const { prefetch(x.out + i); }
  template <class U> struct Here {
    U mean, scale, bias;
  };
  template <class U> Here<U> at(std::int64_t j) const {
    return {mean.template at<U>(j), scale.template at<U>(j), bias.template at<U>(j)};
  }
  template <class U> void operator()(const Here<U> &h, std::int64_t i, bool past) const {
    U added{};
    if constexpr (residual)
      added = get<U>(x.residual + i);
    const auto y = [this](auto z, auto mean, auto scale, auto bias, auto added) {
      return activate<T, kind>(before_activation<T, residual>(z, mean, scale, bias, added), slope);
    };
    put<kind == Slope::leaky>(x.out + i, each(y, get<U>(x.z + i), h.mean, h.scale, h.bias, added), past);
  }
};

// dz and dt. whole: the two terms of the whole mini-batch are taken off.
template <class T, Slope kind, bool residual, bool whole, class P> struct Gradient {
  using A = Accumulator<T>;
  Tensors<T> x;
  P mean, rstd, scale, bias, first, second;
  A slope;

  Gradient(const Tensors<T> &x, const Terms<A> &terms)
      : x(x), mean(terms.mean), rstd(terms.rstd), scale(terms.scale), bias(terms.bias),
        first(whole ? terms.first : terms.mean), second(whole ? terms.second : terms.mean), slope(terms.slope) {}

  void expect(std::int64_t i) const {
    prefetch(x.out + i);
    if constexpr (residual)
      prefetch(x.dresidual + i);
  }
  template <class U> struct Here {
    U mean, rstd, scale, bias, first, second;
  };
  template <class U> Here<U> at(std::int64_t j) const {
    return {mean.template at<U>(j), rstd.template at<U>(j),  scale.template at<U>(j),
            bias.template at<U>(j), first.template at<U>(j), second.template at<U>(j)};
  }
  template <class U> void operator()(const Here<U> &h, std::int64_t i, bool past) const {
    U z{}, added{};
    if constexpr (kind != Slope::identity || whole)
      z = get<U>(x.z + i);
    if constexpr (kind != Slope::identity && residual)
      added = get<U>(x.residual + i);
    const U dt = gradient_of_sum<T, kind, residual>(get<U>(x.g + i), z, h.mean, h.scale, h.bias, added, slope);
    if constexpr (residual)
      put<true>(x.dresidual + i, dt, past);
    if constexpr (whole)
      put<false>(x.out + i, (dt - h.first - (z - h.mean) * h.rstd * h.second) * h.scale, past);
    else
      put<false>(x.out + i, dt * h.scale, past);
  }
};

// Every element of the runs, in whole lines and vectors as far as they go. Past the caches where lines can be aligned:
// for columns where those of all rows are, for a channel from the first aligned element of a run on. A line is written
// at one go, for half a line past the caches costs as much as a whole one.
template <int rows, class T, class Element>
WB_FLAT void map_runs(const T *to, Runs runs, Sweep sweep, const Element given) {
  using U = Whole<T>;
  constexpr std::int64_t line = 64 / sizeof(T), units = line / places<T, U>;
  const auto beyond_line = [](const T *p) {
    return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(p) % 64 / sizeof(T));
  };
  bool past = sweep == Sweep::past;
  if (rows > 1)
    past = past && beyond_line(to) == 0 && runs.stride % line == 0;
  else // an end that is no whole line is written element by element
    past = past && (runs.length % line == 0 || runs.length >= 64 * line);
  // In memory the lines of outputs are asked for 8 KiB ahead, or a row, where that is longer. Not those of columns in
  // bfloat16: there is more to compute for a line, and the processor is ahead by itself.
  const std::int64_t ahead = std::max<std::int64_t>(8192 / sizeof(T), runs.stride);
  const auto some = [&]<int count>(std::int64_t first, std::integral_constant<int, count>) {
    const Element element = given; // a copy, that no store may change: its terms stay in registers
    const auto few = [&]<class V>(std::int64_t j) {
      const auto here = element.template at<V>(j);
      for (int r = 0; r < count; ++r)
        element(here, first + r * runs.stride + j, false);
    };
    std::int64_t j = 0;
    if (rows == 1 && past)
      for (const std::int64_t head = std::min((line - beyond_line(to + first)) % line, runs.length); j < head; ++j)
        few.template operator()<Single<T>>(j);
    for (; j + line <= runs.length; j += line) {
      if ((rows == 1 || !is_half<T>) && sweep == Sweep::memory)
        element.expect(first + j + ahead);
      typename Element::template Here<U> here[units];
#pragma GCC unroll 8
      for (int u = 0; u < units; ++u)
        here[u] = element.template at<U>(j + u * places<T, U>);
#pragma GCC unroll 4
      for (int r = 0; r < count; ++r)
#pragma GCC unroll 8
        for (int u = 0; u < units; ++u)
          element(here[u], first + r * runs.stride + j + u * places<T, U>, past);
    }
    along<T>(runs.length, few, j);
  };
  std::int64_t run = 0;
  for (; run + rows <= runs.count && sweep == Sweep::cached; run += rows)
    some(run * runs.stride, std::integral_constant<int, rows>{});
  for (; run < runs.count; ++run)
    some(run * runs.stride, std::integral_constant<int, 1>{});
#if defined(__AVX2__)
  if (past)
    _mm_sfence(); // only then do other threads see what went past the caches in order
#endif
}

// work(terms) with a channel's terms as they are, or with those of columns as units have them.
template <class T, class P, class Work>
inline void with_terms(const Terms<Accumulator<T>> &terms, std::int64_t columns, const Work &work) {
  if constexpr (P::rows == 1)
    work(terms);
  else
    work(Laid<T>(terms, columns).terms());
}

template <class T, class P>
void apply(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &given, Sweep sweep) {
  with_terms<T, P>(given, runs.length, [&](const Terms<Accumulator<T>> &terms) {
    specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
      map_runs<P::rows>(x.out, runs, sweep, Apply<T, kind, residual, P>(x, terms));
    });
  });
}

template <class T, class P>
void gradient(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &given, Sweep sweep) {
  with_terms<T, P>(given, runs.length, [&](const Terms<Accumulator<T>> &terms) {
    specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
      if (terms.first != nullptr)
        map_runs<P::rows>(x.out, runs, sweep, Gradient<T, kind, residual, true, P>(x, terms));
      else
        map_runs<P::rows>(x.out, runs, sweep, Gradient<T, kind, residual, false, P>(x, terms));
    });
  });
}

} // namespace wholebatch::WB_SET
