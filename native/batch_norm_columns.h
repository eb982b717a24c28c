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

// What is asked for while four rows are gone over: with each line that is read, the one so many rows further down. (A
// processor drops what it is asked for faster than memory answers.)
constexpr std::int64_t rows_ahead = 16;

template <class T> WB_FLAT void add_rows(const T *z, Runs runs, Accumulator<T> *__restrict sum) {
  by_four(
      runs.count,
      [&](std::int64_t row) {
        const T *a = z + row * runs.stride;
        along<T>(runs.length, [&]<class U>(std::int64_t j) {
          const auto at = [&](int r) { return get<U>(a + r * runs.stride + j); };
          lay(sum + j, take<U>(sum + j) + ((at(0) + at(1)) + (at(2) + at(3))));
        });
      },
      [&](std::int64_t row) {
        along<T>(runs.length,
                 [&]<class U>(std::int64_t j) { lay(sum + j, take<U>(sum + j) + get<U>(z + row * runs.stride + j)); });
      });
}

// The sums of what is left after the centre is taken off, and of its squares.
template <class T>
WB_FLAT void add_deviations(const T *z, Runs runs, const Accumulator<T> *__restrict centre,
                            Accumulator<T> *__restrict sum, Accumulator<T> *__restrict squares) {
  by_four(
      runs.count,
      [&](std::int64_t row) {
        const T *a = z + row * runs.stride;
        along<T>(runs.length, [&]<class U>(std::int64_t j) {
          const U c = take<U>(centre + j);
          const auto at = [&](int r) {
            if constexpr (!is_single<U>)
              prefetch(a + (rows_ahead + r) * runs.stride + j);
            return get<U>(a + r * runs.stride + j) - c;
          };
          const U w = at(0), x = at(1), y = at(2), v = at(3);
          lay(sum + j, take<U>(sum + j) + ((w + x) + (y + v)));
          lay(squares + j, take<U>(squares + j) + ((w * w + x * x) + (y * y + v * v)));
        });
      },
      [&](std::int64_t row) {
        along<T>(runs.length, [&]<class U>(std::int64_t j) {
          const U w = get<U>(z + row * runs.stride + j) - take<U>(centre + j);
          lay(sum + j, take<U>(sum + j) + w);
          lay(squares + j, take<U>(squares + j) + w * w);
        });
      });
}

// Blocks merge in order by Chan's formula. The first, which is short, is passed over twice: its mean, found in T's
// precision, is put right by what the deviations still sum to. A later block's deviations are taken from the mean of
// the rows before it, n_a of them, in a single pass: off away from its own mean, its M2 is what the squares sum to less
// n_b off^2, which costs eps n_b off^2 of exactness. Merging adds off^2 n_a n_b / (n_a + n_b), so with n_b <= 4 n_a
// that is no more than 5 eps of M2.
template <class T> void column_moments(const T *z, Runs runs, double *__restrict out_mean, double *__restrict out_m2) {
  using A = Accumulator<T>;
  alignas(64) A centre[strip_columns], rest[strip_columns], squares[strip_columns];
  alignas(64) double mean[strip_columns], m2[strip_columns]; // all of them in the order that units have
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
  as_stored<T>(mean, runs.length, out_mean);
  as_stored<T>(m2, runs.length, out_m2);
}

// dt of the elements at i, and its product with what is left of z after the mean is taken off.
template <class T, Slope kind, bool residual, class U> struct Column {
  struct Pair {
    U dt, product;
  };
  const Tensors<T> x; // a copy, as in `Apply`
  const Accumulator<T> slope;
  const U mean, scale, bias;
  Column(const Tensors<T> &x, const Terms<Accumulator<T>> &terms, std::int64_t j)
      : x(x), slope(terms.slope), mean(take<U>(terms.mean + j)), scale(take<U>(terms.scale + j)),
        bias(take<U>(terms.bias + j)) {}
  Pair at(std::int64_t i) const {
    const U z = get<U>(x.z + i);
    U added{};
    if constexpr (residual && kind != Slope::identity)
      added = get<U>(x.residual + i);
    const U dt = gradient_of_sum<T, kind, residual>(get<U>(x.g + i), z, mean, scale, bias, added, slope);
    return {dt, dt * (z - mean)};
  }
};

template <class T, Slope kind, bool residual>
WB_FLAT void add_products(const Tensors<T> x, Runs runs, const Terms<Accumulator<T>> terms,
                          Accumulator<T> *__restrict sum, Accumulator<T> *__restrict sum_xhat) {
  by_four(
      runs.count,
      [&](std::int64_t row) {
        along<T>(runs.length, [&]<class U>(std::int64_t j) {
          const Column<T, kind, residual, U> column(x, terms, j);
          const auto at = [&](int r) {
            const std::int64_t i = (row + r) * runs.stride + j;
            if constexpr (!is_single<U>) {
              prefetch(x.z + i + rows_ahead * runs.stride);
              prefetch(x.g + i + rows_ahead * runs.stride);
            }
            return column.at(i);
          };
          const auto p = at(0), q = at(1), r = at(2), s = at(3);
          lay(sum + j, take<U>(sum + j) + ((p.dt + q.dt) + (r.dt + s.dt)));
          lay(sum_xhat + j,
              take<U>(sum_xhat + j) + ((p.product + q.product) + (r.product + s.product)) * take<U>(terms.rstd + j));
        });
      },
      [&](std::int64_t row) {
        along<T>(runs.length, [&]<class U>(std::int64_t j) {
          const auto p = Column<T, kind, residual, U>(x, terms, j).at(row * runs.stride + j);
          lay(sum + j, take<U>(sum + j) + p.dt);
          lay(sum_xhat + j, take<U>(sum_xhat + j) + p.product * take<U>(terms.rstd + j));
        });
      });
}

template <class T>
void column_sums(const Tensors<T> &x, Runs runs, const Terms<Accumulator<T>> &given, double *__restrict sum,
                 double *__restrict sum_xhat) {
  using A = Accumulator<T>;
  alignas(64) A own[strip_columns], own_xhat[strip_columns], as_they_lie[strip_columns];
  const Laid<T> laid(given, runs.length);
  const Terms<A> &terms = laid.terms();
  const std::int64_t most = block_rows(runs.length);
  for (std::int64_t row = 0; row < runs.count; row += most) {
    const Runs block{std::min(most, runs.count - row), runs.length, runs.stride};
    std::fill_n(own, block.length, A(0));
    std::fill_n(own_xhat, block.length, A(0));
    const Tensors<T> here = x.at(row * runs.stride);
    specialise(x, terms.slope, [&]<Slope kind, bool residual>() {
      add_products<T, kind, residual>(here, block, terms, own, own_xhat);
    });
    const auto add = [&](const A *from, double *to) {
      as_stored<T>(from, block.length, as_they_lie);
      for (std::int64_t j = 0; j < block.length; ++j)
        to[j] += as_they_lie[j];
    };
    add(own, sum);
    add(own_xhat, sum_xhat);
  }
}

} // namespace wholebatch::WB_SET
