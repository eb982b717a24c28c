// What is done once per column or weight, not per example: statistics from moments, and rows of the table copied.
#pragma once

#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// mean, rstd = 1 / sqrt(M2 share + eps) and scale = gamma rstd, with share = 1 / count.
template <class T>
void statistics(int columns, const double *__restrict mean, const double *__restrict m2, double share, T eps,
                const T *__restrict gamma, T *__restrict mean_out, T *__restrict rstd, T *__restrict scale) {
  for (int c = 0; c < columns; ++c) {
    const T r = T(1) / std::sqrt(static_cast<T>(m2[c] * share) + eps);
    mean_out[c] = static_cast<T>(mean[c]);
    rstd[c] = r;
    scale[c] = gamma[c] * r;
  }
}

// k1 and k2 of du = scale g + k1 + k2 (u - mean).
template <class T>
void gradient_terms(int columns, const double *sum_g, const double *sum_gx, double share, const T *rstd, const T *scale,
                    T *k1, T *k2) {
  for (int c = 0; c < columns; c += width<T>) {
    const Vec<T> s = load(scale + c);
    store(k1 + c, -s * to_vector<T>(load_doubles<T>(sum_g + c) * share));
    store(k2 + c, -s * load(rstd + c) * to_vector<T>(load_doubles<T>(sum_gx + c) * share));
  }
}

// out = parts[0] + parts[1] + ..., in that order.
template <class T>
void sum_parts(std::int64_t count, int parts, const T *part, std::int64_t stride, T *__restrict out) {
  for (std::int64_t i = 0; i < count; i += width<T>) {
    Vec<T> sum = load(part + i);
    for (int p = 1; p < parts; ++p)
      sum += load(part + p * stride + i);
    store(out + i, sum);
  }
}

// Columns [begin, end) of rows of a dense table, less `centre` where there is one.
template <class T>
void gather(const T *table, std::int64_t columns, const std::int64_t *rows, int count, std::int64_t begin,
            std::int64_t end, const T *centre, T *__restrict h, std::int64_t ldh) {
  constexpr int W = width<T>, ahead = 8; // shuffled rows lie anywhere: they are asked for before they are needed
  for (int r = 0; r < count; ++r, h += ldh) {
    const T *from = table + rows[r] * columns;
    if (r + ahead < count) {
      const T *next = table + rows[r + ahead] * columns;
      for (std::int64_t c = begin; c < end; c += 64 / static_cast<int>(sizeof(T)))
        __builtin_prefetch(next + c);
    }
    const auto take = [&](std::int64_t c) {
      store(h + c, centre ? load(from + c) - load(centre + c) : load(from + c));
    };
    for (std::int64_t c = begin; c + W <= end; c += W)
      take(c);
    if (end - begin >= W)
      take(end - W); // what is left of the row, and of what is there already as much as fills a vector
    else
      for (std::int64_t c = begin; c < end; ++c)
        h[c] = centre ? from[c] - centre[c] : from[c];
  }
}

} // namespace wholebatch::WB_SET
