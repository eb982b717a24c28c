// Batch norm on one worker's part: what is done in which order and by whom. The formulas and the meaning of every
// argument are those of src/wholebatch/kernels/batch_norm/kernel.py.
//
// Two layouts. Planes: (n, channels, inner), the elements of a channel lie in n planes of `inner`. Rows: (n, channels),
// inner is 1. What is added up is added in fixed pieces and in a fixed order, both functions of the shape alone: the
// bits of a result do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "batch_norm_kernels.h"

namespace wholebatch {

struct Shape {
  std::int64_t n, channels, inner;
  std::int64_t size() const { return n * channels * inner; }
  std::int64_t count() const { return n * inner; } // elements of a channel
};

template <class T> struct BatchNorm {
  using A = Accumulator<T>;
  Shape shape;
  Tensors<T> x;
  const A *weight, *bias; // null: 1 and 0
  A slope;

  void moments(A *mean, A *m2) const;
  void apply(const A *mean, const A *rstd) const;
  // Both, where this part is the whole mini-batch: a channel's elements are still in cache when they are normalised.
  void forward(double eps, A *mean, A *m2, A *rstd) const;

  // sums: (2, channels)
  void sums(const A *mean, const A *rstd, A *sums) const;
  // sums null: the statistics are constants.
  void input_gradient(const A *mean, const A *rstd, const A *sums, double count) const;
  void backward(const A *mean, const A *rstd, double count, A *sums) const;
};

extern template struct BatchNorm<float>;
extern template struct BatchNorm<double>;
extern template struct BatchNorm<BFloat16>;

} // namespace wholebatch
