// What stands between two matrix products: norm, activation and dropout, forward and backward, on one block of rows.
//
// Forward stores only z; whoever needs h (the next product, the weight gradient) makes it again from z in a block that
// stays in cache. All loops run over whole vectors of padded columns, so an element is computed alike wherever it
// stands.
#pragma once

#include "elementary.h"
#include "kernels.h"
#include "random.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// How rows are normalised, as far as the loops differ: over the mini-batch, over each row (layer, rms), not at all.
enum class Kind { batch, row, none };

// Columns per stretch of dropout words held on the stack.
constexpr int stretch = 256;

// factors[i] = 1 / (1 - p) where column begin + i of this row stays, else 0.
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

template <class T, Activation A, Kind N, bool AFTER> struct Layer {
  using V = Vec<T>;
  static constexpr int W = width<T>;

  static V normalised_of(V z) {
    if constexpr (AFTER)
      return activate<T, A>(z);
    else
      return z;
  }

  // y from u, for the vector at column c of a row with these statistics.
  static V scaled(const Between<T> &b, V u, int c, T row_mean, T row_rstd) {
    if constexpr (N == Kind::batch)
      return fma<T>(u - load(b.mean + c), load(b.scale + c), load(b.beta + c));
    else if constexpr (N == Kind::row)
      return fma<T>((u - row_mean) * row_rstd, load(b.gamma + c), load(b.beta + c));
    else
      return u;
  }

  static V centred(const Between<T> &b, V u, int c, T row_mean, T row_rstd) {
    if constexpr (N == Kind::batch)
      return (u - load(b.mean + c)) * load(b.rstd + c);
    else
      return (u - row_mean) * row_rstd;
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

  static void normalise(const Between<T> &b, Rows rows, const T *z, std::int64_t ldz, int begin, int end, T *h,
                        std::int64_t ldh) {
    for (int r = 0; r < rows.count; ++r, z += ldz, h += ldh) {
      T row_mean = 0, row_rstd = 1;
      if constexpr (N == Kind::row) {
        row_mean = b.row_mean[rows.first + r];
        row_rstd = b.row_rstd[rows.first + r];
      }
      for (int c = begin; c < end; c += W) {
        const V y = scaled(b, normalised_of(load(z + c)), c, row_mean, row_rstd);
        if constexpr (AFTER)
          store(h + c, y);
        else
          store(h + c, activate<T, A>(y));
      }
      if (b.threshold)
        for (int from = begin; from < end; from += stretch) {
          T factors[stretch];
          const int until = end < from + stretch ? end : from + stretch;
          keep_factors(b, rows.first + r, from, until, factors);
          for (int c = from; c < until; c += W)
            store(h + c, load(h + c) * load(factors + c - from));
        }
    }
  }

  // Two passes over a block that is in the first-level cache, four rows side by side so that additions overlap.
  static void moments(int rows, const T *z, std::int64_t ldz, int vectors, double *mean, double *m2) {
    for (int j = 0; j < vectors; ++j, z += W, mean += W, m2 += W) {
      V sums[4]{}, off[4]{}, squares[4]{};
      for (int r = 0; r < rows; ++r)
        sums[r & 3] += normalised_of(load(z + r * ldz));
      const V centre = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / T(rows);
      for (int r = 0; r < rows; ++r) {
        const V d = normalised_of(load(z + r * ldz)) - centre;
        off[r & 3] += d;
        squares[r & 3] = fma<T>(d, d, squares[r & 3]);
      }
      const V rest = (off[0] + off[1]) + (off[2] + off[3]),
              square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
      for (int i = 0; i < W; ++i) { // what rounding left of the mean is put right in double
        mean[i] = static_cast<double>(centre[i]) + static_cast<double>(rest[i]) / rows;
        const double m =
            static_cast<double>(square[i]) - static_cast<double>(rest[i]) * static_cast<double>(rest[i]) / rows;
        m2[i] = m > 0 || m != m ? m : 0;
      }
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
      for (int r = 0; r < rows.count; ++r)
        sums[r & 3] += normalised_of(load(z + r * ldz)) * weight_of(b, rows.first + r);
      const V centre = ((sums[0] + sums[1]) + (sums[2] + sums[3])) * static_cast<T>(share);
      for (int r = 0; r < rows.count; ++r) {
        const V d = normalised_of(load(z + r * ldz)) - centre, weighted = d * weight_of(b, rows.first + r);
        off[r & 3] += weighted;
        squares[r & 3] = fma<T>(d, weighted, squares[r & 3]);
      }
      const V rest = (off[0] + off[1]) + (off[2] + off[3]),
              square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
      for (int i = 0; i < W; ++i) {
        mean[i] = static_cast<double>(centre[i]) + static_cast<double>(rest[i]) * share;
        const double m =
            static_cast<double>(square[i]) - static_cast<double>(rest[i]) * static_cast<double>(rest[i]) * share;
        m2[i] = m > 0 || m != m ? m : 0;
      }
    }
  }

  static T weight_of(const Between<T> &b, std::int64_t row) { return b.weights[b.order[row]]; }

  static void output_gradient(const Between<T> &b, Rows rows, const T *z, T *dh, std::int64_t ld, int column,
                              int vectors, double *sum_g, double *sum_gx) {
    if (b.threshold)
      for (int r = 0; r < rows.count; ++r) {
        T factors[stretch];
        keep_factors(b, rows.first + r, column, column + vectors * W, factors);
        for (int j = 0; j < vectors; ++j)
          store(dh + r * ld + j * W, load(dh + r * ld + j * W) * load(factors + j * W));
      }
    for (int j = 0; j < vectors; ++j) {
      const int c = column + j * W;
      V sums[4]{}, products[4]{};
      for (int r = 0; r < rows.count; ++r) {
        const V sum = load(z + r * ld + j * W), u = normalised_of(sum);
        T row_mean = 0, row_rstd = 1;
        if constexpr (N == Kind::row) {
          row_mean = b.row_mean[rows.first + r];
          row_rstd = b.row_rstd[rows.first + r];
        }
        V g = load(dh + r * ld + j * W);
        if constexpr (!AFTER)
          g *= slope<T, A>(scaled(b, u, c, row_mean, row_rstd));
        store(dh + r * ld + j * W, g);
        if constexpr (N != Kind::none) {
          sums[r & 3] += g;
          products[r & 3] = fma<T>(g, centred(b, u, c, row_mean, row_rstd), products[r & 3]);
        }
      }
      if constexpr (N != Kind::none) {
        const V sum = (sums[0] + sums[1]) + (sums[2] + sums[3]),
                product = (products[0] + products[1]) + (products[2] + products[3]);
        for (int i = 0; i < W; ++i) {
          sum_g[j * W + i] = sum[i];
          sum_gx[j * W + i] = product[i];
        }
      }
    }
  }

  static void input_gradient(const Between<T> &b, Rows rows, const T *z, const T *g, std::int64_t ld, T *dz,
                             std::int64_t lddz) {
    for (int r = 0; r < rows.count; ++r, z += ld, g += ld, dz += lddz) {
      T row_mean = 0, row_rstd = 1, mean_t = 0, mean_tx = 0;
      if constexpr (N == Kind::row) {
        row_mean = b.row_mean[rows.first + r];
        row_rstd = b.row_rstd[rows.first + r];
        V sum{}, product{};
        for (int c = 0; c < b.columns; c += W) {
          const V t = load(g + c) * load(b.gamma + c);
          sum += t;
          product = fma<T>(t, centred(b, normalised_of(load(z + c)), c, row_mean, row_rstd), product);
        }
        mean_t = b.norm == Norm::layer ? sum_lanes<T>(sum) / T(b.columns) : T(0);
        mean_tx = sum_lanes<T>(product) / T(b.columns);
      }
      for (int c = 0; c < b.columns; c += W) {
        const V sum = load(z + c);
        V d;
        if constexpr (N == Kind::batch) {
          V k1 = load(b.k1 + c), k2 = load(b.k2 + c);
          if (b.weights) {
            k1 *= weight_of(b, rows.first + r);
            k2 *= weight_of(b, rows.first + r);
          }
          d = fma<T>(k2, normalised_of(sum) - load(b.mean + c), fma<T>(load(b.scale + c), load(g + c), k1));
        } else if constexpr (N == Kind::row) {
          const V x = centred(b, normalised_of(sum), c, row_mean, row_rstd);
          d = (load(g + c) * load(b.gamma + c) - mean_t - x * mean_tx) * row_rstd * load(b.real + c);
        } else {
          d = load(g + c);
        }
        if constexpr (AFTER)
          d *= slope<T, A>(sum);
        store(dz + c, d);
      }
    }
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
void input_gradient(const Between<T> &b, Rows rows, const T *z, const T *g, std::int64_t ld, T *dz, std::int64_t lddz) {
  with_layer(b, [&](auto layer) { layer.input_gradient(b, rows, z, g, ld, dz, lddz); });
}
template <class T>
void output_gradient(const Between<T> &b, Rows rows, const T *z, T *dh, std::int64_t ld, int column, int vectors,
                     double *sum_g, double *sum_gx) {
  with_layer(b, [&](auto layer) { layer.output_gradient(b, rows, z, dh, ld, column, vectors, sum_g, sum_gx); });
}

} // namespace wholebatch::WB_SET
