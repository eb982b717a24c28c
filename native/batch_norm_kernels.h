// The arithmetic of batch norm on one piece of a tensor: what batch_norm.cpp hands to the build of the kernels that
// fits the processor. The formulas are those of src/wholebatch/kernels/batch_norm/kernel.py.
//
// A piece is a number of runs of elements. In a `column` kernel every element of a run is another column, and the same
// one in all runs; in a `channel` kernel all elements are one channel's.
#pragma once

#include <cstdint>

namespace wholebatch {

struct BFloat16 {
  std::uint16_t bits;
};

// What is computed with: storage is widened on its way in, and rounded on its way out.
template <class T> struct AccumulatorOf {
  using type = T;
};
template <> struct AccumulatorOf<BFloat16> {
  using type = float;
};
template <class T> using Accumulator = typename AccumulatorOf<T>::type;

// `count` runs of `length` elements, which begin `stride` elements apart.
struct Runs {
  std::int64_t count, length, stride;
};

// The most columns of a run: what is gathered of each column lies on the stack. 2048 columns of a run are 8 KiB.
constexpr std::int64_t strip_columns = 2048;

// One element for each column of a run, or a single one for a channel.
template <class A> struct Terms {
  const A *mean, *rstd;
  const A *scale, *bias;   // weight * rstd, and bias
  const A *first, *second; // the sums of dt and dt * xhat over the whole mini-batch by its count; null: constants
  A slope;                 // 1 no activation, 0 ReLU, else leaky ReLU
  Terms at(std::int64_t i) const {
    const auto move = [i](const A *p) { return p == nullptr ? p : p + i; };
    return {move(mean), move(rstd), move(scale), move(bias), move(first), move(second), slope};
  }
};

// What a call reads and writes; null where it does not.
template <class T> struct Tensors {
  const T *z, *residual, *g; // input, what is added, gradient of the output
  T *out, *dresidual;        // y or dz
  Tensors at(std::int64_t i) const {
    const auto move = [i](auto *p) { return p == nullptr ? p : p + i; };
    return {move(z), move(residual), move(g), move(out), move(dresidual)};
  }
};

// Where what is written element by element finds its inputs and the lines of its outputs: in the caches, or in memory;
// or in memory, and the outputs go past the caches.
enum class Sweep { cached, memory, past };

template <class T> struct BatchNormKernels {
  using A = Accumulator<T>;

  // Mean and M2 of each column, or of the channel, which has at least one element. next: how many elements further the
  // next block of the channel begins, 0 if there is none; it is asked for meanwhile. near: the mean of elements that
  // join these, a fifth of all of them at least; null: there are none.
  void (*column_moments)(const T *z, Runs, double *mean, double *m2);
  void (*channel_moments)(const T *z, Runs, std::int64_t next, const double *near, double *mean, double *m2);
  // Adds the sums of dt and of dt * xhat to those given.
  void (*column_sums)(const Tensors<T> &, Runs, const Terms<A> &, double *sum, double *sum_xhat);
  void (*channel_sums)(const Tensors<T> &, Runs, std::int64_t next, const Terms<A> &, double *sum, double *sum_xhat);
  // out = y
  void (*column_apply)(const Tensors<T> &, Runs, const Terms<A> &, Sweep sweep);
  void (*channel_apply)(const Tensors<T> &, Runs, const Terms<A> &, Sweep sweep);
  // out = dz, and dresidual = dt where there is a residual.
  void (*column_gradient)(const Tensors<T> &, Runs, const Terms<A> &, Sweep sweep);
  void (*channel_gradient)(const Tensors<T> &, Runs, const Terms<A> &, Sweep sweep);
};

// The build for an instruction set.
template <class T> const BatchNormKernels<T> &batch_norm_kernels_avx512();
template <class T> const BatchNormKernels<T> &batch_norm_kernels_avx2();
template <class T> const BatchNormKernels<T> &batch_norm_kernels_portable();

} // namespace wholebatch
