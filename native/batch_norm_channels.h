// Moments and sums of one channel's elements, which lie in runs. There are as many partial sums side by side whatever
// the width of a vector, and an element's place in its run says to which it is added: every build gives the same bits.
#pragma once

#include "batch_norm_element.h"

namespace wholebatch::WB_SET {

template <class V, int K> struct Values {
  V of[K];
};

template <class A, int K> struct LaneSums {
  static constexpr int lanes = 256 / sizeof(A), widest = 64 / sizeof(A), W = width<A>;
  Vec<A> sum[K][lanes / W]{};
  A single[K][widest]{}; // of what is left of a run after the vectors of the widest build

  void add(int v, const Values<Vec<A>, K> &values) {
    for (int k = 0; k < K; ++k)
      sum[k][v] += values.of[k];
  }

  // each.operator()<V>(x) gives what is added for the element, or the vector of elements, at the pointers x, which move
  // along the run. What lies `ahead` elements further is asked for meanwhile; 0: nothing is.
  template <class T, class Each>
  void add_run(const Tensors<T> &x, std::int64_t count, std::int64_t ahead, const Each &each) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      if (ahead != 0)
        for (std::int64_t j = i + ahead; j < i + ahead + lanes; j += 64 / static_cast<std::int64_t>(sizeof(T))) {
          prefetch(x.z + j);
          if (x.g != nullptr)
            prefetch(x.g + j);
        }
#pragma GCC unroll 16
      for (int v = 0; v < lanes / W; ++v)
        add(v, each.template operator()<Vec<A>>(x.at(i + v * W)));
    }
    for (int v = 0; i + widest <= count; i += widest)
      for (int w = 0; w < widest / W; ++w, ++v)
        add(v, each.template operator()<Vec<A>>(x.at(i + w * W)));
    for (int place = 0; i < count; ++i, ++place) {
      const Values<A, K> values = each.template operator()<A>(x.at(i));
      for (int k = 0; k < K; ++k)
        single[k][place] += values.of[k];
    }
  }

  A total(int k) {
    for (int v = 0; v < widest / W; ++v)
      sum[k][v] += load(single[k] + v * W);
    for (int half = lanes / W / 2; half > 0; half /= 2)
      for (int v = 0; v < half; ++v)
        sum[k][v] += sum[k][v + half];
    return sum_lanes<A>(sum[k][0]);
  }
};

// Of a block: two passes in cache, or a single one where a mean is near. Either is put right by what the deviations
// still sum to, see column_moments.
template <class T>
void channel_moments(const T *z, Runs runs, std::int64_t next, const double *near, double *mean, double *m2) {
  using A = Accumulator<T>;
  const auto count = static_cast<double>(runs.count * runs.length);
  const auto runs_at = [&](std::int64_t run) {
    return Tensors<T>{z + run * runs.stride, nullptr, nullptr, nullptr, nullptr};
  };
  A centre;
  if (near == nullptr) {
    LaneSums<A, 1> plain;
    for (std::int64_t run = 0; run < runs.count; ++run)
      plain.add_run(runs_at(run), runs.length, 0,
                    []<class V>(const Tensors<T> &x) { return Values<V, 1>{{get<V>(x.z)}}; });
    centre = static_cast<A>(plain.total(0) / count);
  } else {
    centre = static_cast<A>(*near);
  }
  LaneSums<A, 2> rest;
  for (std::int64_t run = 0; run < runs.count; ++run)
    rest.add_run(runs_at(run), runs.length, next, [&]<class V>(const Tensors<T> &x) {
      const V d = get<V>(x.z) - centre;
      return Values<V, 2>{{d, d * d}};
    });
  const double left = rest.total(0), off = left / count, squares = rest.total(1) - left * off;
  *mean = centre + off;
  *m2 = squares < 0 ? 0 : squares;
}

template <class T, Slope kind, bool residual>
void channel_products(const Tensors<T> &x, Runs runs, std::int64_t next, const Terms<Accumulator<T>> &terms,
                      double *sum, double *sum_xhat) {
  using A = Accumulator<T>;
  const A mean = *terms.mean, scale = *terms.scale, bias = *terms.bias;
  LaneSums<A, 2> sums;
  for (std::int64_t run = 0; run < runs.count; ++run)
    sums.add_run(x.at(run * runs.stride), runs.length, next, [&]<class V>(const Tensors<T> &at) {
      const V z = get<V>(at.z);
      V t{}, added{};
      if constexpr (kind != Slope::identity) {
        if constexpr (residual)
          added = get<V>(at.residual);
        t = before_activation<T, residual, V>(z, V{} + mean, V{} + scale, V{} + bias, added);
      }
      const V dt = through_activation<T, kind, V>(get<V>(at.g), t, terms.slope);
      return Values<V, 2>{{dt, dt * (z - mean)}};
    });
  *sum += sums.total(0);
  *sum_xhat += sums.total(1) * static_cast<double>(*terms.rstd);
}

template <class T>
void channel_sums(const Tensors<T> &x, Runs runs, std::int64_t next, const Terms<Accumulator<T>> &terms, double *sum,
                  double *sum_xhat) {
  specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
    channel_products<T, kind, residual>(x, runs, next, terms, sum, sum_xhat);
  });
}

} // namespace wholebatch::WB_SET
