// What stands between two matrix products: norm, activation and dropout, forward and backward, on one block of rows.
//
// Forward stores only z; whoever needs h (the next product, the weight gradient) makes it again from z in a block that
// stays in cache. All loops run over whole vectors of padded columns, so an element is computed alike wherever it
// stands.
#pragma once

#include <type_traits>

#include "elementary.h"
#include "kernels.h"
#include "random.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// How rows are normalised, as far as the loops differ: over the mini-batch, over each row (layer, rms), not at all.
enum class Kind { batch, row, none };

// Columns per stretch of dropout words held on the stack.
constexpr int stretch = 256;

// factors[i] = 1 / (1 - p) where column begin + i of this row of the whole mini-batch stays, else 0.
// Not inlined: eight activations times five norms of it took the compiler half of its time.
template <class T>
__attribute__((noinline)) void keep_factors(const Between<T> &b, std::int64_t row, int begin, int end,
                                            T *__restrict factors) {
  std::uint32_t words[stretch + 8];
  const int quad = begin / 4, lead = begin - quad * 4;
  philox_row(static_cast<std::uint32_t>(quad), (lead + end - begin + 3) / 4, static_cast<std::uint32_t>(row), b.layer,
             b.step, b.seed, words);
  for (int i = 0; i < end - begin; ++i)
    factors[i] = words[lead + i] >= b.threshold ? b.keep_scale : T(0);
}

// Four accumulators side by side, so that additions overlap: f(row, accumulator) for all rows, in order.
template <class F> inline __attribute__((always_inline)) void by_fours(int rows, F f) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) {
    f(r, std::integral_constant<int, 0>{});
    f(r + 1, std::integral_constant<int, 1>{});
    f(r + 2, std::integral_constant<int, 2>{});
    f(r + 3, std::integral_constant<int, 3>{});
  }
  if (r < rows)
    f(r, std::integral_constant<int, 0>{});
  if (r + 1 < rows)
    f(r + 1, std::integral_constant<int, 1>{});
  if (r + 2 < rows)
    f(r + 2, std::integral_constant<int, 2>{});
}
template <class V> inline V sum_of(const V (&four)[4]) { return (four[0] + four[1]) + (four[2] + four[3]); }

template <class T, Activation A, Kind N, bool AFTER> struct Layer {
  using V = Vec<T>;
  static constexpr int W = width<T>;
  // Rows that share the loads of a column's constants. Activations with a power in them leave no registers for it.
  static constexpr int rows_at_once =
      A == Activation::relu || A == Activation::leaky_relu || A == Activation::identity ? 4 : 1;

  // What one column's vector needs. Held in registers while rows pass by: the compiler may not keep what a store could
  // change.
  struct Column {
    V mean{}, scale{}, gamma{}, beta{}, rstd{};
    Column(const Between<T> &b, int c) {
      if constexpr (N == Kind::batch) {
        mean = load(b.mean + c);
        scale = load(b.scale + c);
        rstd = load(b.rstd + c);
        beta = load(b.beta + c);
      } else if constexpr (N == Kind::row) {
        gamma = load(b.gamma + c);
        beta = load(b.beta + c);
      }
    }
  };
  struct Row {
    T mean = 0, rstd = 1;
    Row(const Between<T> &b, std::int64_t row) {
      if constexpr (N == Kind::row) {
        mean = b.row_mean[row];
        rstd = b.row_rstd[row];
      }
    }
  };

  static V normalised_of(V z) {
    if constexpr (AFTER)
      return activate<T, A>(z);
    else
      return z;
  }

  // y from u
  static V scaled(const Column &column, const Row &row, V u) {
    if constexpr (N == Kind::batch)
      return fma<T>(u - column.mean, column.scale, column.beta);
    else if constexpr (N == Kind::row)
      return fma<T>((u - row.mean) * row.rstd, column.gamma, column.beta);
    else
      return u;
  }

  static V centred(const Column &column, const Row &row, V u) {
    if constexpr (N == Kind::batch)
      return (u - column.mean) * column.rstd;
    else
      return (u - row.mean) * row.rstd;
  }

  static void row_statistics(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz) {
    for (std::int64_t r = rows.first; r < rows.first + rows.count; ++r, z += ldz)
      statistics_of_row(b, z, b.row_mean[r], b.row_rstd[r]);
  }

  static void statistics_of_row(const Between<T> &b, const T *z, T &mean, T &rstd) {
    V sum{};
    for (int c = 0; c < b.columns; c += W)
      sum += normalised_of(load(z + c)) * load(b.real + c);
    mean = b.norm == Norm::layer ? sum_lanes<T>(sum) / T(b.columns) : T(0);
    V squares{};
    for (int c = 0; c < b.columns; c += W) {
      const V d = (normalised_of(load(z + c)) - mean) * load(b.real + c);
      squares += d * d;
    }
    rstd = T(1) / std::sqrt(sum_lanes<T>(squares) / T(b.columns) + b.eps);
  }

  template <int ROWS>
  static void normalise_rows(const Between<T> &b, std::int64_t first, const T *z, std::int64_t ldz, int begin, int end,
                             T *h, std::int64_t ldh) {
    for (int c = begin; c < end; c += W) {
      const Column column(b, c);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const V y = scaled(column, Row(b, first + r), normalised_of(load(z + r * ldz + c)));
        store(h + r * ldh + c, AFTER ? y : activate<T, A>(y));
      }
    }
  }

  static void normalise(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz, int begin, int end, T *h,
                        std::int64_t ldh) {
    int r = 0;
    for (; r + rows_at_once <= rows.count; r += rows_at_once)
      normalise_rows<rows_at_once>(b, rows.first + r, z + r * ldz, ldz, begin, end, h + r * ldh, ldh);
    for (; r < rows.count; ++r)
      normalise_rows<1>(b, rows.first + r, z + r * ldz, ldz, begin, end, h + r * ldh, ldh);
    if (b.threshold)
      for (r = 0; r < rows.count; ++r, h += ldh)
        for (int from = begin; from < end; from += stretch) {
          T factors[stretch];
          const int until = end < from + stretch ? end : from + stretch;
          keep_factors(b, rows.place + r, from, until, factors);
          for (int c = from; c < until; c += W)
            store(h + c, load(h + c) * load(factors + c - from));
        }
  }

  // What rounding left of the mean is put right in double.
  static void store_moments(V centre, V rest, V square, double share, double *mean, double *m2) {
    const Doubles<T> off = to_doubles<T>(rest), m = to_doubles<T>(square) - off * off * share;
    store_doubles<T>(mean, to_doubles<T>(centre) + off * share);
    store_doubles<T>(m2, m <= 0.0 ? Doubles<T>{} : m); // a nan stays
  }

  // Two passes over a block that is in the first-level cache.
  static void moments(int rows, const T *z, std::int64_t ldz, int vectors, double *mean, double *m2) {
    const T share = T(1) / T(rows);
    for (int j = 0; j < vectors; ++j, z += W, mean += W, m2 += W) {
      V sums[4]{}, off[4]{}, squares[4]{};
      by_fours(rows, [&](int r, auto i) { sums[i] += normalised_of(load(z + r * ldz)); });
      const V centre = sum_of(sums) * share;
      by_fours(rows, [&](int r, auto i) {
        const V d = normalised_of(load(z + r * ldz)) - centre;
        off[i] += d;
        squares[i] = fma<T>(d, d, squares[i]);
      });
      store_moments(centre, sum_of(off), sum_of(squares), 1.0 / rows, mean, m2);
    }
  }

  // The same where an example of weight w counts as w examples.
  static void weighted_moments(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz, int vectors, double *mean,
                               double *m2) {
    double total = 0;
    for (int r = 0; r < rows.count; ++r)
      total += static_cast<double>(weight_of(b, rows.first + r));
    const double share = total > 0 ? 1 / total : 0;
    for (int j = 0; j < vectors; ++j, z += W, mean += W, m2 += W) {
      V sums[4]{}, off[4]{}, squares[4]{};
      by_fours(rows.count,
               [&](int r, auto i) { sums[i] += normalised_of(load(z + r * ldz)) * weight_of(b, rows.first + r); });
      const V centre = sum_of(sums) * static_cast<T>(share);
      by_fours(rows.count, [&](int r, auto i) {
        const V d = normalised_of(load(z + r * ldz)) - centre, weighted = d * weight_of(b, rows.first + r);
        off[i] += weighted;
        squares[i] = fma<T>(d, weighted, squares[i]);
      });
      store_moments(centre, sum_of(off), sum_of(squares), share, mean, m2);
    }
  }

  static T weight_of(const Between<T> &b, std::int64_t row) { return b.weights[b.order[row]]; }

  static void output_gradient(const Between<T> &b, Rows rows, const T *z, T *dh, std::int64_t ld, int begin,
                              int vectors, double *sum_g, double *sum_gx) {
    if (b.threshold)
      for (int r = 0; r < rows.count; ++r) {
        T factors[stretch];
        keep_factors(b, rows.place + r, begin, begin + vectors * W, factors);
        for (int j = 0; j < vectors; ++j)
          store(dh + r * ld + j * W, load(dh + r * ld + j * W) * load(factors + j * W));
      }
    for (int j = 0; j < vectors; ++j, z += W, dh += W, sum_g += W, sum_gx += W) {
      const Column column(b, begin + j * W);
      V sums[4]{}, products[4]{};
      by_fours(rows.count, [&](int r, auto i) {
        const Row row(b, rows.first + r);
        const V u = normalised_of(load(z + r * ld));
        V g = load(dh + r * ld);
        if constexpr (!AFTER)
          g = times_slope<T, A>(g, scaled(column, row, u));
        if constexpr (N != Kind::none || !AFTER)
          store(dh + r * ld, g);
        if constexpr (N != Kind::none) {
          sums[i] += g;
          products[i] = fma<T>(g, centred(column, row, u), products[i]);
        }
      });
      if constexpr (N != Kind::none) {
        store_doubles<T>(sum_g, to_doubles<T>(sum_of(sums)));
        store_doubles<T>(sum_gx, to_doubles<T>(sum_of(products)));
      }
    }
  }

  // ROWS rows of dz. Batch norm: dz = scale g + k1 + k2 (u - mean), with k1 and k2 times the example's weight.
  template <int ROWS, bool WEIGHED>
  static void gradient_of_rows(const Between<T> &b, std::int64_t first, const T *z, const T *g, std::int64_t ld,
                               int begin, int end, T *dz, std::int64_t lddz) {
    T mean_t[ROWS]{}, mean_tx[ROWS]{};
    if constexpr (N == Kind::row)
      for (int r = 0; r < ROWS; ++r)
        means_of_row(b, first + r, z + r * ld, g + r * ld, mean_t[r], mean_tx[r]);
    for (int c = begin; c < end; c += W) {
      const Column column(b, c);
      V k1{}, k2{}, real{};
      if constexpr (N == Kind::batch) {
        k1 = load(b.k1 + c);
        k2 = load(b.k2 + c);
      } else if constexpr (N == Kind::row) {
        real = load(b.real + c);
      }
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        const Row row(b, first + r);
        const V sum = load(z + r * ld + c), u = normalised_of(sum);
        V d = load(g + r * ld + c);
        if constexpr (N == Kind::batch) {
          if constexpr (WEIGHED) {
            const T weight = weight_of(b, first + r);
            d = fma<T>(k2 * weight, u - column.mean, fma<T>(column.scale, d, k1 * weight));
          } else {
            d = fma<T>(k2, u - column.mean, fma<T>(column.scale, d, k1));
          }
        } else if constexpr (N == Kind::row) {
          d = (d * column.gamma - mean_t[r] - centred(column, row, u) * mean_tx[r]) * row.rstd * real;
        }
        if constexpr (AFTER)
          d = times_slope<T, A>(d, sum);
        store(dz + r * lddz + c, d);
      }
    }
  }

  static void means_of_row(const Between<T> &b, std::int64_t at, const T *z, const T *g, T &mean_t, T &mean_tx) {
    const Row row(b, at);
    V sum{}, product{};
    for (int c = 0; c < b.columns; c += W) {
      const Column column(b, c);
      const V t = load(g + c) * column.gamma;
      sum += t;
      product = fma<T>(t, centred(column, row, normalised_of(load(z + c))), product);
    }
    mean_t = b.norm == Norm::layer ? sum_lanes<T>(sum) / T(b.columns) : T(0);
    mean_tx = sum_lanes<T>(product) / T(b.columns);
  }

  template <bool WEIGHED>
  static void gradients(const Between<T> &b, Rows rows, const T *z, const T *g, std::int64_t ld, int begin, int end,
                        T *dz, std::int64_t lddz) {
    int r = 0;
    for (; r + rows_at_once <= rows.count; r += rows_at_once)
      gradient_of_rows<rows_at_once, WEIGHED>(b, rows.first + r, z + r * ld, g + r * ld, ld, begin, end, dz + r * lddz,
                                              lddz);
    for (; r < rows.count; ++r)
      gradient_of_rows<1, WEIGHED>(b, rows.first + r, z + r * ld, g + r * ld, ld, begin, end, dz + r * lddz, lddz);
  }

  static void input_gradient(const Between<T> &b, Rows rows, const T *z, const T *g, std::int64_t ld, int begin,
                             int end, T *dz, std::int64_t lddz) {
    if constexpr (N == Kind::batch)
      if (b.weights)
        return gradients<true>(b, rows, z, g, ld, begin, end, dz, lddz);
    gradients<false>(b, rows, z, g, ld, begin, end, dz, lddz);
  }
};

template <Activation A> struct Constant {};

// Calls f with the activation, or with the Layer, as a type: one switch per block, none per element.
template <class T, class F> inline void with_activation(const Between<T> &b, F f) {
  switch (b.activation) {
  case Activation::relu:
    return f(Constant<Activation::relu>{});
  case Activation::leaky_relu:
    return f(Constant<Activation::leaky_relu>{});
  case Activation::elu:
    return f(Constant<Activation::elu>{});
  case Activation::gelu:
    return f(Constant<Activation::gelu>{});
  case Activation::silu:
    return f(Constant<Activation::silu>{});
  case Activation::tanh:
    return f(Constant<Activation::tanh>{});
  case Activation::sigmoid:
    return f(Constant<Activation::sigmoid>{});
  case Activation::identity:
    return f(Constant<Activation::identity>{});
  }
}
template <class T, class F> inline void with_layer(const Between<T> &b, F f) {
  with_activation<T>(b, [&]<Activation A>(Constant<A>) {
    if (b.norm == Norm::none)
      f(Layer<T, A, Kind::none, false>{});
    else if (b.norm == Norm::batch)
      b.after ? f(Layer<T, A, Kind::batch, true>{}) : f(Layer<T, A, Kind::batch, false>{});
    else
      b.after ? f(Layer<T, A, Kind::row, true>{}) : f(Layer<T, A, Kind::row, false>{});
  });
}

// What only one norm has is built for that norm alone: each of these costs the compiler eight activations.
template <class T>
void moments(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz, int vectors, double *mean, double *m2) {
  const auto gather = [&](auto layer) {
    b.weights ? layer.weighted_moments(b, rows, z, ldz, vectors, mean, m2)
              : layer.moments(rows.count, z, ldz, vectors, mean, m2);
  };
  if (b.after)
    with_activation<T>(b, [&]<Activation A>(Constant<A>) { gather(Layer<T, A, Kind::batch, true>{}); });
  else
    gather(Layer<T, Activation::identity, Kind::batch, false>{});
}
template <class T> void row_statistics(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz) {
  const auto gather = [&](auto layer) { layer.row_statistics(b, rows, z, ldz); };
  if (b.after)
    with_activation<T>(b, [&]<Activation A>(Constant<A>) { gather(Layer<T, A, Kind::row, true>{}); });
  else
    gather(Layer<T, Activation::identity, Kind::row, false>{});
}
template <class T>
void normalise(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz, int begin, int end, T *h,
               std::int64_t ldh) {
  with_layer(b, [&](auto layer) { layer.normalise(b, rows, z, ldz, begin, end, h, ldh); });
}
template <class T>
void input_gradient(const Between<T> &b, Rows rows, const T *z, const T *g, std::int64_t ld, int begin, int end, T *dz,
                    std::int64_t lddz) {
  with_layer(b, [&](auto layer) { layer.input_gradient(b, rows, z, g, ld, begin, end, dz, lddz); });
}
template <class T>
void output_gradient(const Between<T> &b, Rows rows, const T *z, T *dh, std::int64_t ld, int column, int vectors,
                     double *sum_g, double *sum_gx) {
  with_layer(b, [&](auto layer) { layer.output_gradient(b, rows, z, dh, ld, column, vectors, sum_g, sum_gx); });
}

} // namespace wholebatch::WB_SET
