// The arithmetic on one block of rows: what the step hands to the build of the kernels that fits the processor.
//
// Shapes: a block is `rows` rows of a row-major matrix with leading dimension ld. Columns are padded to whole vectors,
// and padding is zero or never read. A panel is two vectors of columns wide (the last one may be one vector).
#pragma once

#include <cstdint>

#include "ahead.h"

namespace wholebatch {

enum class Norm { batch, layer, rms, none };
enum class Activation { relu, leaky_relu, elu, gelu, silu, tanh, sigmoid, identity };
enum class LossKind { cross_entropy, mse, huber, bce };
enum class OptimizerKind { sgd, adam, adamw, none };

// What a hidden layer does between its sums z and its output h, and the vectors (one element per padded column) it does
// it with. u is what is normalised: z, or phi(z) where the norm stands after the activation. x̂ is always formed from u
// - mean: the shorter scale * u + offset loses the digits that a large mean takes up.
template <class T> struct Between {
  Norm norm;
  bool after;
  Activation activation;
  int columns; // without padding
  T eps;
  const T *real;          // 1 in columns, 0 in padding
  const T *mean, *rstd;   // batch: x̂ = (u - mean) * rstd
  const T *scale;         // batch: y = (u - mean) * scale + beta, with scale = gamma * rstd
  const T *gamma, *beta;  // layer, rms: y = x̂ * gamma + beta
  const T *k1, *k2;       // batch, backward: du = scale * g + k1 + k2 * (u - mean)
  T *row_mean, *row_rstd; // layer, rms: of the mini-batch's rows; written by `row_statistics`, read by all that follow
  std::uint64_t seed;
  std::uint32_t threshold; // dropout: an element stays where its random word is at least this; 0 is no dropout
  std::uint32_t layer, step;
  T keep_scale;              // 1 / (1 - p)
  const T *weights;          // batch: the table's weights where they weigh the moments too, else null
  const std::int64_t *order; // the table's row of each row of the mini-batch
};

template <class T> struct LossTerms {
  LossKind kind;
  int outputs;
  T label_smoothing, delta;
  const T *class_weights; // null: all 1
  double factor;          // scale / sum of weights: multiplies each example's weighted loss
};

template <class T> struct UpdateTerms {
  OptimizerKind kind;
  bool nesterov;
  T learning_rate, momentum, weight_decay, beta1, beta2, eps;
  T step_size, root_correction; // Adam: learning_rate / (1 - beta1^t) and sqrt(1 - beta2^t)
};

// How many of this process's rows of the mini-batch, from which on: blocks know where they stand for the norms over
// rows, and for dropout, which counts in the whole mini-batch.
struct Rows {
  std::int64_t first;
  int count;
  std::int64_t place = 0; // of the first row in the whole mini-batch
};

template <class T> struct Kernels {
  int width;

  // Left operands of products as their register tiles read them, (rows x depth) or the transpose of (rows x count): to
  // be handed over with 0 for lda. It pays where many panels are multiplied by one. A vector behind the last element
  // is written to, too.
  void (*pack)(int rows, int depth, const T *a, std::int64_t lda, T *out);
  void (*pack_transposed)(int rows, int count, const T *a, std::int64_t lda, T *out);
  // A panel of a right operand, (rows x panel), its rows one behind the other.
  void (*pack_panel)(int rows, const T *b, std::int64_t ldb, int vectors, T *out);
  // c (rows x panel) = a (rows x depth) * b (depth x panel, packed). Of a panel's columns so many count: the rest is
  // zero.
  void (*multiply)(int rows, int depth, const T *a, std::int64_t lda, const T *b, int columns, T *c, std::int64_t ldc,
                   const Ahead &ahead);
  // out (columns of a x panel, packed) (+)= a^T (count x rows) * b (rows x panel)
  void (*multiply_transposed)(int rows, int count, const T *a, std::int64_t lda, const T *b, std::int64_t ldb,
                              int columns, T *out, bool first, const Ahead &ahead);
  // The same for the last rows of all, and the update of w with what came out: out is in the first-level cache then,
  // and is left unspecified (where first, it is not written at all).
  void (*multiply_and_update)(int rows, int count, const T *a, std::int64_t lda, const T *b, std::int64_t ldb,
                              int columns, T *out, bool first, const UpdateTerms<T> &, T *w, T *first_moment,
                              T *second_moment, const Ahead &ahead);
  // Columns [begin, end) of `to`, so many rows of a panel of `columns` columns and its padding, which is zero: the
  // transpose of as many rows of another panel.
  void (*transpose)(const T *from, int from_wide, int rows, T *to, int to_wide, int begin, int end, int columns);

  // Between a panel and `count` rows of weights, (outputs, inputs), one way or the other.
  void (*exchange)(bool to_panel, T *rows, std::int64_t inputs, int count, T *panel, int wide);

  // Mean and M2 of u over the block's rows, for `vectors` vectors of columns.
  void (*moments)(const Between<T> &, Rows, const T *z, std::int64_t ldz, int vectors, double *mean, double *m2);
  // Layer and rms norm: mean and rstd of each row of u, into row_mean and row_rstd.
  void (*row_statistics)(const Between<T> &, Rows, const T *z, std::int64_t ldz);
  // h = dropout(norm and activation of z) for columns [begin, end), both whole vectors.
  void (*normalise)(const Between<T> &, Rows, const T *z, std::int64_t ldz, int begin, int end, T *h, std::int64_t ldh);
  // dz from g, for columns [begin, end), both whole vectors. dz may be g.
  void (*input_gradient)(const Between<T> &, Rows, const T *z, const T *g, std::int64_t ld, int begin, int end, T *dz,
                         std::int64_t lddz);
  // In place over one panel that begins at `column`: dh -> g; and the sums over rows of g and g * x̂.
  void (*output_gradient)(const Between<T> &, Rows, const T *z, T *dh, std::int64_t ld, int column, int vectors,
                          double *sum_g, double *sum_gx);

  // One element per padded column: see columns.h.
  void (*statistics)(int columns, const double *mean, const double *m2, double share, T eps, const T *gamma,
                     T *mean_out, T *rstd, T *scale);
  void (*gradient_terms)(int columns, const double *sum_g, const double *sum_gx, double share, const T *rstd,
                         const T *scale, T *k1, T *k2);
  // out = part 0 + part 1 + ..., which lie `stride` apart; count is whole vectors.
  void (*sum_parts)(std::int64_t count, int parts, const T *part, std::int64_t stride, T *out);
  void (*gather)(const T *table, std::int64_t columns, const std::int64_t *rows, int count, std::int64_t begin,
                 std::int64_t end, const T *centre, T *h, std::int64_t ldh);

  // In place: outputs -> their gradient. Returns the block's share of the loss. scratch: (padded outputs, lanes).
  double (*loss)(const LossTerms<T> &, int rows, T *out, std::int64_t ld, const std::int64_t *rows_index,
                 const std::int64_t *classes, const T *values, const T *weights, T *scratch);
  void (*update)(const UpdateTerms<T> &, std::int64_t count, T *w, const T *g, T *first, T *second);

  // For peaks.cpp: chains of multiply-adds, see chain.h.
  double (*fma_chain)(std::int64_t rounds, T *values);
};

// The build for an instruction set.
template <class T> const Kernels<T> &kernels_avx512();
template <class T> const Kernels<T> &kernels_avx2();
template <class T> const Kernels<T> &kernels_portable();

} // namespace wholebatch
