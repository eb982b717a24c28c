// The losses of the output layer: their value and, in place of the outputs, their gradient.
#pragma once

#include <cmath>

#include "elementary.h"
#include "kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// l = (1 - e) w_y (-log p_y) + e/C sum_c w_c (-log p_c) with smoothing e and class weights w: torch's definition.
template <class T> inline double cross_entropy_row(const LossTerms<T> &t, T *o, std::int64_t y, T weight) {
  constexpr int W = width<T>;
  const int classes = t.outputs;
  Vec<T> highest = all(o[0]);
  int c = 0;
  for (; c + W <= classes; c += W)
    highest = load(o + c) <= highest ? highest : load(o + c);
  T most = max_lanes<T>(highest);
  for (; c < classes; ++c)
    most = o[c] <= most ? most : o[c];

  const T own = t.class_weights ? t.class_weights[y] : T(1);
  const T true_share = (T(1) - t.label_smoothing) * own, every_share = t.label_smoothing / T(classes);
  T weighted = 0, weights = 0; // sums over classes of w_c (o_c - most) and of w_c
  if (t.label_smoothing != 0)
    for (int i = 0; i < classes; ++i) {
      const T w = t.class_weights ? t.class_weights[i] : T(1);
      weighted += w * (o[i] - most);
      weights += w;
    }
  const T shifted = o[y] - most;

  T sum = 0;
  for (int i = 0; i < classes; i += W) { // the lanes of padding are computed and not counted
    const Vec<T> e = exp(load(o + i) - most);
    store(o + i, e);
    for (int lane = 0; lane < W && i + lane < classes; ++lane)
      sum += e[lane];
  }
  const T log_sum = std::log(sum);
  const double loss = static_cast<double>(true_share) * (static_cast<double>(log_sum) - static_cast<double>(shifted)) +
                      static_cast<double>(every_share) * (static_cast<double>(weights) * static_cast<double>(log_sum) - static_cast<double>(weighted));

  const T factor = static_cast<T>(t.factor) * weight;
  const T share = factor * (true_share + every_share * weights) / sum;
  for (int i = 0; i < classes; ++i) {
    o[i] *= share;
    if (t.label_smoothing != 0)
      o[i] -= factor * every_share * (t.class_weights ? t.class_weights[i] : T(1));
  }
  o[y] -= factor * true_share;
  return loss * static_cast<double>(weight);
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
double loss(const LossTerms<T> &t, int rows, T *out, std::int64_t ld, const std::int64_t *rows_index, const std::int64_t *classes,
            const T *values, const T *weights) {
  constexpr int W = width<T>;
  const int padded = (t.outputs + W - 1) / W * W;
  double total = 0;
  for (int r = 0; r < rows; ++r, out += ld) {
    const std::int64_t row = rows_index[r];
    const T weight = weights ? weights[row] : T(1);
    if (t.kind == LossKind::cross_entropy)
      total += cross_entropy_row(t, out, classes[row], weight);
    else
      total += values_row(t, out, values + row * t.outputs, weight);
    for (int c = t.outputs; c < padded; ++c)
      out[c] = 0;
  }
  return total * t.factor;
}

} // namespace wholebatch::WB_SET
