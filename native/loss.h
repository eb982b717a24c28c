// The losses of the output layer: their value and, in place of the outputs, their gradient.
#pragma once

#include <cmath>

#include "elementary.h"
#include "kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// Cross-entropy of as many rows as a vector has lanes, one row per lane:
//   l = (1 - e) w_y (-log p_y) + e/C sum_c w_c (-log p_c)     with label smoothing e and class weights w, torch's
//   definition.
// A row of few classes fills no vector, and maxima and sums across lanes are slow; so the rows are turned on their
// side. `turned` holds (classes in whole vectors, lanes). Lanes without a row repeat the first one with weight 0.
template <class T>
inline double cross_entropy_rows(const LossTerms<T> &t, int rows, T *out, std::int64_t ld, const std::int64_t *labels,
                                 const T *weights, T *turned) {
  using V = Vec<T>;
  constexpr int W = width<T>;
  const int classes = t.outputs;
  const bool plain = t.label_smoothing == 0 && !t.class_weights;
  for (int c = 0; c < classes; c += W) {
    V square[W];
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane)
      square[lane] = load(out + (lane < rows ? lane : 0) * ld + c);
    transpose_square<T>(square);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      store(turned + (c + i) * W, square[i]);
  }

  V most = load(turned);
  for (int c = 1; c < classes; ++c)
    most = load(turned + c * W) <= most ? most : load(turned + c * W);
  T of_class[W]{}, of_row[W]{}, of_label[W]{};
  for (int lane = 0; lane < rows; ++lane) {
    of_class[lane] = t.class_weights ? t.class_weights[labels[lane]] : T(1);
    of_row[lane] = weights[lane];
    of_label[lane] = turned[labels[lane] * W + lane];
  }
  const V own = load(of_class), weight = load(of_row), shifted = load(of_label) - most;
  V sum{}, weighted{};
  T weights_of_classes = 0;
  for (int c = 0; c < classes; ++c) {
    const V o = load(turned + c * W) - most, e = exp(o);
    if (!plain) {
      const T w = t.class_weights ? t.class_weights[c] : T(1);
      weighted += w * o;
      weights_of_classes += w;
    }
    store(turned + c * W, e);
    sum += e;
  }
  const V true_share = (T(1) - t.label_smoothing) * own;
  const T every_share = t.label_smoothing / T(classes);
  const V log_sum = log(sum);
  const V loss = weight * (true_share * (log_sum - shifted) + every_share * (weights_of_classes * log_sum - weighted));
  const V factor = weight * static_cast<T>(t.factor);
  const V share = factor * (true_share + every_share * weights_of_classes) / sum, taken = factor * true_share;

  for (int c = 0; c < classes; ++c) {
    V g = load(turned + c * W) * share;
    if (!plain)
      g -= factor * (every_share * (t.class_weights ? t.class_weights[c] : T(1)));
    store(turned + c * W, g);
  }
  store(of_label, loss);
  store(of_class, taken);
  double total = 0;
  for (int lane = 0; lane < rows; ++lane) {
    total += static_cast<double>(of_label[lane]);
    turned[labels[lane] * W + lane] -= of_class[lane];
  }
  for (int c = 0; c < classes; c += W) {
    V square[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      square[i] = c + i < classes ? load(turned + (c + i) * W) : V{};
    transpose_square<T>(square);
#pragma GCC unroll 16
    for (int lane = 0; lane < W; ++lane)
      if (lane < rows)
        store(out + lane * ld + c, square[lane]);
  }
  return total;
}

template <class T> inline double values_row(const LossTerms<T> &t, T *o, const T *y, T weight) {
  const T factor = static_cast<T>(t.factor) * weight / T(t.outputs);
  double loss = 0;
  for (int i = 0; i < t.outputs; ++i) {
    T value, gradient;
    if (t.kind == LossKind::bce) {
      const T target = y[i] * (T(1) - t.label_smoothing) + t.label_smoothing / T(2);
      const T w = t.class_weights ? t.class_weights[i] : T(1);
      const T e = std::exp(o[i] > 0 ? -o[i] : o[i]);
      value = w * ((o[i] > 0 ? o[i] : T(0)) - o[i] * target + std::log1p(e));
      gradient = w * ((o[i] > 0 ? T(1) / (T(1) + e) : e / (T(1) + e)) - target);
      value = o[i] != o[i] ? o[i] : value;
    } else {
      const T d = o[i] - y[i], size = d < 0 ? -d : d;
      if (t.kind == LossKind::mse) {
        value = d * d;
        gradient = T(2) * d;
      } else {
        value = size > t.delta ? t.delta * (size - t.delta / T(2)) : d * d / T(2);
        gradient = size > t.delta ? (d < 0 ? -t.delta : t.delta) : d;
      }
    }
    loss += static_cast<double>(value);
    o[i] = gradient * factor;
  }
  return loss * static_cast<double>(weight) / t.outputs;
}

template <class T>
double loss(const LossTerms<T> &t, int rows, T *out, std::int64_t ld, const std::int64_t *rows_index,
            const std::int64_t *classes, const T *values, const T *weights, T *scratch) {
  constexpr int W = width<T>;
  double total = 0;
  for (int r = 0; r < rows; r += W) {
    const int count = rows - r < W ? rows - r : W;
    T weight[W];
    std::int64_t labels[W];
    for (int i = 0; i < count; ++i) {
      weight[i] = weights ? weights[rows_index[r + i]] : T(1);
      labels[i] = classes ? classes[rows_index[r + i]] : 0;
    }
    if (t.kind == LossKind::cross_entropy)
      total += cross_entropy_rows(t, count, out + r * ld, ld, labels, weight, scratch);
    else
      for (int i = 0; i < count; ++i)
        total += values_row(t, out + (r + i) * ld, values + rows_index[r + i] * t.outputs, weight[i]);
  }
  return total * t.factor;
}

} // namespace wholebatch::WB_SET
