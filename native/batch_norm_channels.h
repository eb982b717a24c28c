// Moments and sums of one channel's elements, which lie in runs. There are as many partial sums side by side whatever
// the width of a vector, and an element's place in its run says to which it is added: every build gives the same bits.
#pragma once

#include "batch_norm_element.h"

namespace wholebatch::WB_SET {

// What is added to K sums.
template <class U, int K> struct Values {
  U of[K];
};

template <class T, int K> struct LaneSums {
  using A = Accumulator<T>;
  using U = Whole<T>;
  static constexpr int lanes = 256 / sizeof(A), widest = 64 / sizeof(A), W = width<A>, units = lanes / places<T, U>;
  U sum[K][units]{};
  Vec<A> vectors[K][lanes / W]{}; // of what is left of a run after the units, in the order of storage
  A single[K][widest]{};          // and after the vectors of the widest build

  // each.operator()<U>(x) gives what is added for the elements at the pointers x, which move along the run. What lies
  // `ahead` elements further is asked for meanwhile; 0: nothing is.
  template <class Each> void add_run(const Tensors<T> &x, std::int64_t count, std::int64_t ahead, const Each &each) {
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      if (ahead != 0)
        for (std::int64_t j = i + ahead; j < i + ahead + lanes; j += 64 / static_cast<std::int64_t>(sizeof(T))) {
          prefetch(x.z + j);
          if (x.g != nullptr)
            prefetch(x.g + j);
        }
#pragma GCC unroll 16
      for (int u = 0; u < units; ++u) {
        const Values<U, K> values = each.template operator()<U>(x.at(i + u * places<T, U>));
        for (int k = 0; k < K; ++k)
          sum[k][u] = sum[k][u] + values.of[k];
      }
    }
    for (int v = 0; i + widest <= count; i += widest)
      for (int w = 0; w < widest / W; ++w, ++v) {
        const Values<Vector<T>, K> values = each.template operator()<Vector<T>>(x.at(i + w * W));
        for (int k = 0; k < K; ++k)
          vectors[k][v] += values.of[k].of[0];
      }
    for (int place = 0; i < count; ++i, ++place) {
      const Values<Single<T>, K> values = each.template operator()<Single<T>>(x.at(i));
      for (int k = 0; k < K; ++k)
        single[k][place] += values.of[k].of[0];
    }
  }

  A total(int k) {
    alignas(64) A units_lie[lanes], in_order[lanes];
    for (int u = 0; u < units; ++u)
      lay(units_lie + u * places<T, U>, sum[k][u]);
    as_stored<T>(units_lie, lanes, in_order);
    Vec<A> all[lanes / W];
    for (int v = 0; v < lanes / W; ++v)
      all[v] = load(in_order + v * W) + vectors[k][v];
    for (int v = 0; v < widest / W; ++v)
      all[v] += load(single[k] + v * W);
    for (int half = lanes / W / 2; half > 0; half /= 2)
      for (int v = 0; v < half; ++v)
        all[v] += all[v + half];
    return sum_lanes<A>(all[0]);
  }
};

// Of a block: two passes in cache, or a single one where a mean is near. Either is put right by what the deviations
// still sum to, see column_moments.
template <class T>
WB_FLAT void channel_moments(const T *z, Runs runs, std::int64_t next, const double *near, double *mean, double *m2) {
  using A = Accumulator<T>;
  const auto count = static_cast<double>(runs.count * runs.length);
  const auto runs_at = [&](std::int64_t run) {
    return Tensors<T>{z + run * runs.stride, nullptr, nullptr, nullptr, nullptr};
  };
  A centre;
  if (near == nullptr) {
    LaneSums<T, 1> plain;
    for (std::int64_t run = 0; run < runs.count; ++run)
      plain.add_run(runs_at(run), runs.length, 0,
                    []<class U>(const Tensors<T> &x) { return Values<U, 1>{{get<U>(x.z)}}; });
    centre = static_cast<A>(plain.total(0) / count);
  } else {
    centre = static_cast<A>(*near);
  }
  LaneSums<T, 2> rest;
  for (std::int64_t run = 0; run < runs.count; ++run)
    rest.add_run(runs_at(run), runs.length, next, [&]<class U>(const Tensors<T> &x) {
      const U d = get<U>(x.z) - everywhere<U>(centre);
      return Values<U, 2>{{d, d * d}};
    });
  const double left = rest.total(0), off = left / count, squares = rest.total(1) - left * off;
  *mean = centre + off;
  *m2 = squares < 0 ? 0 : squares;
}

template <class T, Slope kind, bool residual>
WB_FLAT void channel_products(const Tensors<T> &x, Runs runs, std::int64_t next, const Terms<Accumulator<T>> &terms,
                              double *sum, double *sum_xhat) {
  using A = Accumulator<T>;
  const A mean = *terms.mean, scale = *terms.scale, bias = *terms.bias;
  LaneSums<T, 2> sums;
  for (std::int64_t run = 0; run < runs.count; ++run)
    sums.add_run(x.at(run * runs.stride), runs.length, next, [&]<class U>(const Tensors<T> &at) {
      const U z = get<U>(at.z), centre = everywhere<U>(mean);
      U added{};
      if constexpr (residual && kind != Slope::identity)
        added = get<U>(at.residual);
      const U dt = gradient_of_sum<T, kind, residual>(get<U>(at.g), z, centre, everywhere<U>(scale),
                                                      everywhere<U>(bias), added, terms.slope);
      return Values<U, 2>{{dt, dt * (z - centre)}};
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
