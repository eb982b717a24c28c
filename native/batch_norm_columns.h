// Moments and sums of columns, over rows that lie one after the other. Four rows at a time: their sum is formed in
// registers, so that the column's own is loaded and stored once for the four, and is four times as exact.
#pragma once

#include <algorithm>

#include "batch_norm_element.h"

namespace wholebatch::WB_SET {

// Rows of a block: few enough that sums of them in T's precision are exact enough, enough that merging costs little. A
// function of the shape alone.
inline std::int64_t block_rows(std::int64_t columns) {
  return std::clamp<std::int64_t>((16384 / columns) & ~std::int64_t{3}, 16, 256);
}

constexpr std::int64_t first_rows = 16; // of the block whose mean is not known beforehand

// each(j, value0, ...) for groups of four rows, then of one.
template <class Four, class One> inline void by_four(std::int64_t rows, const Four &four, const One &one) {
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4)
    four(row);
  for (; row < rows; ++row)
    one(row);
}

// Rows that are to be read soon. Where memory is the limit, moments and sums took a tenth to a third less.
template <class T> inline void prefetch_rows(const T *p, std::int64_t rows, const Runs &runs) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t j = 0; j < runs.length; j += 64 / static_cast<std::int64_t>(sizeof(T)))
      prefetch(p + row * runs.stride + j);
}

template <class T> void add_rows(const T *z, Runs runs, Accumulator<T> *__restrict sum) {
  using A = Accumulator<T>;
  by_four(
      runs.count,
      [&](std::int64_t row) {
        const T *a = z + row * runs.stride, *b = a + runs.stride, *c = b + runs.stride, *d = c + runs.stride;
        for (std::int64_t j = 0; j < runs.length; ++j)
          sum[j] += (A(widen(a[j])) + widen(b[j])) + (widen(c[j]) + widen(d[j]));
      },
      [&](std::int64_t row) {
        const T *a = z + row * runs.stride;
        for (std::int64_t j = 0; j < runs.length; ++j)
          sum[j] += widen(a[j]);
      });
}

// The sums of what is left after the centre is taken off, and of its squares.
template <class T>
void add_deviations(const T *z, Runs runs, const Accumulator<T> *__restrict centre, Accumulator<T> *__restrict sum,
                    Accumulator<T> *__restrict squares) {
  using A = Accumulator<T>;
  by_four(
      runs.count,
      [&](std::int64_t row) {
        prefetch_rows(z + (row + 8) * runs.stride, 4, runs);
        const T *a = z + row * runs.stride, *b = a + runs.stride, *c = b + runs.stride, *d = c + runs.stride;
        for (std::int64_t j = 0; j < runs.length; ++j) {
          const A w = widen(a[j]) - centre[j], x = widen(b[j]) - centre[j];
          const A y = widen(c[j]) - centre[j], v = widen(d[j]) - centre[j];
          sum[j] += (w + x) + (y + v);
          squares[j] += (w * w + x * x) + (y * y + v * v);
        }
      },
      [&](std::int64_t row) {
        const T *a = z + row * runs.stride;
        for (std::int64_t j = 0; j < runs.length; ++j) {
          const A w = widen(a[j]) - centre[j];
          sum[j] += w;
          squares[j] += w * w;
        }
      });
}

// Blocks merge in order by Chan's formula. The first, which is short, is passed over twice: its mean, found in T's
// precision, is put right by what the deviations still sum to. A later block's deviations are taken from the mean of
// the rows before it, n_a of them, in a single pass: off away from its own mean, its M2 is what the squares sum to less
// n_b off^2, which costs eps n_b off^2 of exactness. Merging adds off^2 n_a n_b / (n_a + n_b), so with n_b <= 4 n_a
// that is no more than 5 eps of M2.
template <class T> void column_moments(const T *z, Runs runs, double *__restrict mean, double *__restrict m2) {
  using A = Accumulator<T>;
  alignas(64) A centre[strip_columns], rest[strip_columns], squares[strip_columns];
  const std::int64_t most = block_rows(runs.length);
  for (std::int64_t row = 0, rows; row < runs.count; row += rows) {
    rows = std::min({row == 0 ? first_rows : 4 * row, most, runs.count - row});
    const Runs block{rows, runs.length, runs.stride};
    const T *from = z + row * runs.stride;
    std::fill_n(rest, block.length, A(0));
    std::fill_n(squares, block.length, A(0));
    if (row == 0) {
      std::fill_n(centre, block.length, A(0));
      add_rows(from, block, centre);
      const A share_of_one = A(1) / static_cast<A>(rows);
      for (std::int64_t j = 0; j < block.length; ++j)
        centre[j] *= share_of_one;
    } else {
      for (std::int64_t j = 0; j < block.length; ++j)
        centre[j] = static_cast<A>(mean[j]);
    }
    add_deviations(from, block, centre, rest, squares);
    const auto before = static_cast<double>(row), own = static_cast<double>(rows), inverse = 1 / own;
    const double share = own / (before + own), weight = before * share;
    for (std::int64_t j = 0; j < block.length; ++j) {
      const double off = rest[j] * inverse, own_m2 = squares[j] - rest[j] * off;
      const double own_mean = centre[j] + off, old_mean = row == 0 ? 0 : mean[j], old_m2 = row == 0 ? 0 : m2[j];
      const double delta = own_mean - old_mean;
      mean[j] = old_mean + delta * share;
      m2[j] = old_m2 + (own_m2 < 0 ? 0 : own_m2) + delta * delta * weight;
    }
  }
}

template <class T, Slope kind, bool residual>
void add_products(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, Accumulator<T> *__restrict sum,
                  Accumulator<T> *__restrict sum_xhat) {
  using A = Accumulator<T>;
  const A *mean = terms.mean, *rstd = terms.rstd, *scale = terms.scale, *bias = terms.bias;
  const A slope = terms.slope;
  const auto dt_of = [&](std::int64_t i, std::int64_t j) {
    A t = 0;
    if constexpr (kind != Slope::identity)
      t = before_activation<T, residual, A>(widen(x.z[i]), mean[j], scale[j], bias[j],
                                            residual ? widen(x.residual[i]) : A(0));
    return through_activation<T, kind, A>(widen(x.g[i]), t, slope);
  };
  by_four(
      runs.count,
      [&](std::int64_t row) {
        const std::int64_t a = row * runs.stride, b = a + runs.stride, c = b + runs.stride, d = c + runs.stride;
        prefetch_rows(x.z + a + 8 * runs.stride, 4, runs);
        prefetch_rows(x.g + a + 8 * runs.stride, 4, runs);
        for (std::int64_t j = 0; j < runs.length; ++j) {
          const A p = dt_of(a + j, j), q = dt_of(b + j, j), r = dt_of(c + j, j), s = dt_of(d + j, j);
          const A m = mean[j];
          sum[j] += (p + q) + (r + s);
          sum_xhat[j] += ((p * (widen(x.z[a + j]) - m) + q * (widen(x.z[b + j]) - m)) +
                          (r * (widen(x.z[c + j]) - m) + s * (widen(x.z[d + j]) - m))) *
                         rstd[j];
        }
      },
      [&](std::int64_t row) {
        const std::int64_t a = row * runs.stride;
        for (std::int64_t j = 0; j < runs.length; ++j) {
          const A p = dt_of(a + j, j);
          sum[j] += p;
          sum_xhat[j] += p * (widen(x.z[a + j]) - mean[j]) * rstd[j];
        }
      });
}

template <class T>
void column_sums(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &terms, double *__restrict sum,
                 double *__restrict sum_xhat) {
  using A = Accumulator<T>;
  alignas(64) A own[strip_columns], own_xhat[strip_columns];
  const std::int64_t most = block_rows(runs.length);
  for (std::int64_t row = 0; row < runs.count; row += most) {
    const Runs block{std::min(most, runs.count - row), runs.length, runs.stride};
    std::fill_n(own, block.length, A(0));
    std::fill_n(own_xhat, block.length, A(0));
    const Tensors<T> here = x.at(row * runs.stride);
    specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
      add_products<T, kind, residual>(here, block, terms, own, own_xhat);
    });
    for (std::int64_t j = 0; j < block.length; ++j) {
      sum[j] += own[j];
      sum_xhat[j] += own_xhat[j];
    }
  }
}

} // namespace wholebatch::WB_SET
