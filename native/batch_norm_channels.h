// Moments and sums of one channel's elements, which lie in runs. A fixed number of partial sums side by side, whatever
// the width of a vector: every build adds in the same order.
#pragma once

#include "batch_norm_element.h"

namespace wholebatch::WB_SET {

// K sums. Elements beyond the last whole group of a run go to sums of their own, in a plain loop.
template <class A, int K> struct LaneSums {
  static constexpr int lanes = 256 / sizeof(A), vectors = lanes / width<A>;
  Vec<A> sum[K][vectors]{};
  alignas(64) A tail[K][lanes]{};

  // group(i, v, sums of vector v): a vector at element i. one(i, lane): a single element, into tail.
  template <class Group, class One> void over(std::int64_t count, const Group &group, const One &one) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
#pragma GCC unroll 16
      for (int v = 0; v < vectors; ++v)
        group(i + v * width<A>, v);
    }
    for (std::int64_t lane = 0; i + lane < count; ++lane)
      one(i + lane, lane);
  }

  A total(int k) {
    for (int v = 0; v < vectors; ++v)
      sum[k][v] += load(tail[k] + v * width<A>);
    for (int half = vectors / 2; half > 0; half /= 2)
      for (int v = 0; v < half; ++v)
        sum[k][v] += sum[k][v + half];
    return sum_lanes<A>(sum[k][0]);
  }
};

// Of a block: two passes in cache, and the mean put right as in batch_norm_columns.h.
template <class T> void channel_moments(const T *z, Runs runs, double *mean, double *m2) {
  using A = Accumulator<T>;
  LaneSums<A, 1> plain;
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const T *from = z + run * runs.stride;
    plain.over(
        runs.length, [&](std::int64_t i, int v) { plain.sum[0][v] += load_wide(from + i); },
        [&](std::int64_t i, std::int64_t lane) { plain.tail[0][lane] += widen(from[i]); });
  }
  const auto count = static_cast<double>(runs.count * runs.length);
  const A centre = static_cast<A>(plain.total(0) / count);
  const Vec<A> centres = all(centre);
  LaneSums<A, 2> rest;
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const T *from = z + run * runs.stride;
    rest.over(
        runs.length,
        [&](std::int64_t i, int v) {
          const Vec<A> d = load_wide(from + i) - centres;
          rest.sum[0][v] += d;
          rest.sum[1][v] += d * d;
        },
        [&](std::int64_t i, std::int64_t lane) {
          const A d = widen(from[i]) - centre;
          rest.tail[0][lane] += d;
          rest.tail[1][lane] += d * d;
        });
  }
  const double left = rest.total(0), off = left / count, squares = rest.total(1) - left * off;
  *mean = centre + off;
  *m2 = squares < 0 ? 0 : squares;
}

template <class T, Slope kind, bool residual>
void channel_products(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, double *sum,
                      double *sum_xhat) {
  using A = Accumulator<T>;
  const A mean = *terms.mean, scale = *terms.scale, bias = *terms.bias, slope = terms.slope;
  const Vec<A> means = all(mean), scales = all(scale), biases = all(bias);
  LaneSums<A, 2> sums;
  for (std::int64_t run = 0; run < runs.count; ++run) {
    const Tensors<T> at = x.at(run * runs.stride);
    sums.over(
        runs.length,
        [&](std::int64_t i, int v) {
          const Vec<A> z = load_wide(at.z + i);
          Vec<A> t{}, added{};
          if constexpr (kind != Slope::identity) {
            if constexpr (residual)
              added = load_wide(at.residual + i);
            t = before_activation<T, residual, Vec<A>>(z, means, scales, biases, added);
          }
          const Vec<A> dt = through_activation<T, kind, Vec<A>>(load_wide(at.g + i), t, slope);
          sums.sum[0][v] += dt;
          sums.sum[1][v] += dt * (z - means);
        },
        [&](std::int64_t i, std::int64_t lane) {
          const A z = widen(at.z[i]);
          A t = 0;
          if constexpr (kind != Slope::identity)
            t = before_activation<T, residual, A>(z, mean, scale, bias, residual ? widen(at.residual[i]) : A(0));
          const A dt = through_activation<T, kind, A>(widen(at.g[i]), t, slope);
          sums.tail[0][lane] += dt;
          sums.tail[1][lane] += dt * (z - mean);
        });
  }
  *sum += sums.total(0);
  *sum_xhat += sums.total(1) * static_cast<double>(*terms.rstd);
}

template <class T>
void channel_sums(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, double *sum, double *sum_xhat) {
  specialise(x, terms.slope,
             [&]<Slope kind, bool residual>() { channel_products<T, kind, residual>(x, runs, terms, sum, sum_xhat); });
}

} // namespace wholebatch::WB_SET
