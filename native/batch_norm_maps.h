// What is written element by element: y forward, dz and the residual's gradient backward. Plain loops over a run, which
// the compiler turns into vectors. P is a pointer where every element has its own column, Same where all are one
// channel's.
#pragma once

#include "batch_norm_element.h"
#include "stream.h"

namespace wholebatch::WB_SET {

template <class A> struct Same {
  A value;
  explicit Same(const A *p) : value(*p) {}
  A operator[](std::int64_t) const { return value; }
};

template <class T, Slope kind, bool residual, class P>
void apply_runs(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, bool stream) {
  using A = Accumulator<T>;
  const P mean(terms.mean), scale(terms.scale), bias(terms.bias);
  const A slope = terms.slope;
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const T *z = x.z + run * runs.stride, *added = residual ? x.residual + run * runs.stride : nullptr;
    emit(x.out + run * runs.stride, runs.length, stream, [&](std::int64_t begin, std::int64_t end, T *__restrict to) {
      for (std::int64_t i = begin; i < end; ++i) {
        const A t = before_activation<T, residual, A>(widen(z[i]), mean[i], scale[i], bias[i],
                                                      residual ? widen(added[i]) : A(0));
        to[i - begin] = narrow<T>(activate<T, kind, A>(t, slope));
      }
    });
  }
  if (stream)
    fence_streams();
}

// whole: the two terms of the whole mini-batch are taken off.
template <class T, Slope kind, bool residual, bool whole, class P>
void gradient_runs(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, bool stream) {
  using A = Accumulator<T>;
  const P mean(terms.mean), rstd(terms.rstd), scale(terms.scale), bias(terms.bias);
  const P first(whole ? terms.first : terms.mean), second(whole ? terms.second : terms.mean);
  const A slope = terms.slope;
  const auto dt_of = [&](const T *z, const T *g, const T *added, std::int64_t i) {
    A t = 0;
    if constexpr (kind != Slope::identity)
      t = before_activation<T, residual, A>(widen(z[i]), mean[i], scale[i], bias[i], residual ? widen(added[i]) : A(0));
    return through_activation<T, kind, A>(widen(g[i]), t, slope);
  };
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const std::int64_t at = run * runs.stride;
    const T *z = x.z + at, *g = x.g + at, *added = residual ? x.residual + at : nullptr;
    emit(x.out + at, runs.length, stream, [&](std::int64_t begin, std::int64_t end, T *__restrict to) {
      for (std::int64_t i = begin; i < end; ++i) {
        A dz = dt_of(z, g, added, i);
        if constexpr (whole)
          dz = dz - first[i] - (widen(z[i]) - mean[i]) * rstd[i] * second[i];
        to[i - begin] = narrow<T>(dz * scale[i]);
      }
    });
    if constexpr (residual)
      emit(x.dresidual + at, runs.length, stream, [&](std::int64_t begin, std::int64_t end, T *__restrict to) {
        for (std::int64_t i = begin; i < end; ++i)
          to[i - begin] = narrow<T>(dt_of(z, g, added, i));
      });
  }
  if (stream)
    fence_streams();
}

template <class T, class P>
void apply(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, bool stream) {
  specialise(x, terms.slope,
             [&]<Slope kind, bool residual>() { apply_runs<T, kind, residual, P>(x, runs, terms, stream); });
}

template <class T, class P>
void gradient(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, bool stream) {
  specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
    terms.first == nullptr ? gradient_runs<T, kind, residual, false, P>(x, runs, terms, stream)
                           : gradient_runs<T, kind, residual, true, P>(x, runs, terms, stream);
  });
}

} // namespace wholebatch::WB_SET
