// What a net consists of and holds between the steps: its settings, its table, its layers, its workers.
#pragma once

#include <cstdint>
#include <vector>

#include "ahead.h"
#include "buffer.h"
#include "kernels.h"
#include "panels.h"
#include "products.h"

namespace wholebatch {

struct Configuration {
  std::vector<int> sizes; // features of the input, of each hidden layer, of the output
  Norm norm;
  bool after, hidden_bias;
  Activation activation;
  double dropout, eps, momentum; // momentum < 0: the plain average over all steps
  LossKind loss;
  double label_smoothing, delta, scale, alpha;
  std::vector<double> class_weights;
  OptimizerKind optimizer;
  bool nesterov;
  double optimizer_momentum, beta1, beta2, optimizer_eps, weight_decay, max_grad_norm; // max_grad_norm 0: no clipping
  bool eps_hat;               // Adam's eps stands before the bias correction
  bool weigh_moments = false; // sample weights weigh batch norm's moments too
  std::uint64_t seed;
  int threads;
  bool by_neuron;
  bool spread = false; // mini-batches are in shards: gradients go from rank to rank, as they lie in panels
  MatmulPrecision matmul_precision = MatmulPrecision::highest;
};

// The table: dense rows, or CSR (then `dense` is null). Targets are class indices or rows of values.
template <class T> struct Table {
  const T *dense = nullptr;
  const T *data = nullptr;
  const std::int32_t *indices32 = nullptr, *indptr32 = nullptr;
  const std::int64_t *indices64 = nullptr, *indptr64 = nullptr;
  const std::int64_t *classes = nullptr;
  const T *values = nullptr, *weights = nullptr;
};

// A matrix or vector of parameters and what the optimizer keeps for it, all in one layout.
template <class T> struct Parameter {
  Buffer<T> value, gradient, first, second;
  void resize(std::size_t count, OptimizerKind optimizer, bool momentum);
};

// What worker 0 gathers of a layer for the meetings over shards. Rows of shards are (count, mean, M2) or (sum of g, sum
// of g x̂, loss).
struct Shared {
  Buffer<double> own_moments, own_sums; // [own shard][1 + 2 padded]
  Buffer<double> moments;               // mean and M2 of those who are normalised together
  Buffer<double> sums;                  // theirs: sum of g, sum of g x̂
  Buffer<double> whole_sums;            // of the whole mini-batch
  Buffer<double> before;                // late: everyone's moments in the step before
  double count = 0;                     // of `moments`
};

template <class T> struct LayerState {
  int inputs, outputs;
  int depth;              // inputs, and one more for the bias: the bias is the weight of a last input that is always 1
  int padded;             // outputs in whole vectors
  std::int64_t stretch;   // rows of `weight` that one worker gets the gradient of at a time
  Panels panels;          // of outputs
  std::int64_t stride;    // of z and its gradient: padded, off the powers of two that would crowd one cache set
  bool bias, norm, shift; // shift: the norm has a beta (rms has none)
  Parameter<T> weight;    // [panel][depth][panel's outputs]
  Buffer<T> back;         // its transpose, in panels of inputs: [panel][outputs][panel's inputs]
  Buffer<Rounded> rounded, rounded_back; // or both, without the bias, as tiles of rounded operands
  Parameter<T> gamma, beta;              // padded, zero in the padding
  Buffer<T> real;                        // 1 in outputs, 0 in the padding
  Buffer<double> running_mean, running_var;
  double tracked = 0; // num_batches_tracked
  // Of the mini-batch under way:
  Buffer<T> z;                                     // (rows, stride)
  bool keeps_inputs = false;                       // h is small enough to be kept for the gradient, not made again
  std::int64_t ldh;                                // of h
  Buffer<T> h;                                     // (rows, ldh), where workers share it
  Buffer<T> row_mean, row_rstd;                    // layer and rms norm
  Buffer<double> means, m2s, sum_gs, sum_gxs;      // [block][padded]
  Shared shared;                                   // where the mini-batch is in shards
  Buffer<double> weight_squares, gradient_squares; // of each vector of each row: [vector][depth]
};

// What a worker holds for itself: each layer's merged statistics (every worker merges, so that one meeting is enough)
// and blocks.
template <class T> struct Workspace {
  struct Vectors {
    Buffer<T> mean, rstd, scale, gamma, beta, k1, k2;
    Buffer<double> merged_mean, merged_m2, merged_g, merged_gx;
    const double *sum_g, *sum_gx; // of those who are normalised together: merged, or those of the only block
    double count = 1;             // of examples that are normalised together
    Buffer<T> h;                  // the layer's kept inputs, where every worker makes its own (by neuron)
    Between<T> between;           // what stands behind the layer
  };
  std::vector<Vectors> layers;
  Buffer<T> h, dz;              // a block of a layer's inputs, and of the gradient of its sums
  Buffer<T> turned;             // outputs of a few rows, one row per lane, for the loss
  Buffer<T> packed;             // a block's h or dz as a left operand
  Buffer<T> panel;              // a panel of a block's dz as a right one
  Buffer<Rounded> left, right;  // rounded operands: a block's h or dz, and dz where it is summed in groups
  Buffer<T> row_mean, row_rstd; // of one block, for predict
  Wanted wanted;
};

} // namespace wholebatch
