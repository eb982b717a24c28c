// The gradients of the parameters over all examples of the mini-batch, and the optimizer's step.
#include <cmath>

#include "network.h"

namespace wholebatch {

namespace {

// Squares of each row of a matrix in panels, rows [begin, end): one sum per row in a fixed order, whoever asks.
template <class T>
void square_rows(const T *panels, int depth, int padded, int wide, std::int64_t begin, std::int64_t end,
                 double *squares) {
  for (std::int64_t k = begin; k < end; ++k)
    squares[k] = 0;
  for (int column = 0; column < padded; column += wide) {
    const int count = std::min(wide, padded - column);
    const T *panel = panels + static_cast<std::int64_t>(column) * depth;
    for (std::int64_t k = begin; k < end; ++k) {
      double sum = 0;
      for (int c = 0; c < count; ++c)
        sum += static_cast<double>(panel[k * count + c]) * static_cast<double>(panel[k * count + c]);
      squares[k] += sum;
    }
  }
}

} // namespace

// dW = H^T dZ for this worker's rows of W, over all examples in order: no partial sums to merge, and the update can
// follow at once.
template <class T> void Network<T>::weight_gradient(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const Range depth = rows_of_depth(step.worker, state.depth);
  const int count = static_cast<int>(depth.end - depth.begin);
  if (count > 0) {
    for (std::int64_t b = 0; b < step.blocks.count; ++b) {
      poll(step.worker);
      inputs(step, layer, b, depth.begin, depth.end);
      std::int64_t ld;
      const T *dz = gradient_of_sums(step, layer, b, ld);
      const int rows = rows_of(step.blocks, b).count;
      for (std::int64_t p = 0; p < panels_of(state.padded); ++p) {
        const int vectors = vectors_at(p, state.padded);
        T *out = state.weight.gradient.get() + p * panel_width() * state.depth + depth.begin * vectors * kernels_.width;
        kernels_.multiply_transposed(rows, count, work_[step.worker].h.get() + depth.begin, ldh_,
                                     dz + p * panel_width(), ld, vectors, out, b == 0);
      }
    }
  }
  finish_gradient(step, layer, depth);
}

// What the loss adds (alpha), the norm's own gradients, and the update, unless it must wait for the gradient's norm.
template <class T> void Network<T>::finish_gradient(const Step &step, int layer, Range depth) {
  LayerState<T> &state = layers_[layer];
  const int wide = static_cast<int>(panel_width());
  if (config_.alpha > 0) {
    const std::int64_t end = std::min<std::int64_t>(depth.end, state.inputs); // not the bias
    const T share = static_cast<T>(step.penalty);
    for (int column = 0; column < state.padded; column += wide) {
      const int count = std::min(wide, state.padded - column);
      const std::int64_t at = static_cast<std::int64_t>(column) * state.depth;
      for (std::int64_t i = at + depth.begin * count; i < at + end * count; ++i)
        state.weight.gradient[i] += share * state.weight.value[i];
    }
    square_rows(state.weight.value.get(), state.depth, state.padded, wide, depth.begin, end,
                state.weight_squares.get());
  }
  if (state.norm && step.worker == 0) {
    const auto &v = work_[0].layers[layer];
    for (int c = 0; c < state.padded; ++c) {
      state.gamma.gradient[c] = static_cast<T>(v.sum_gx[c]);
      state.beta.gradient[c] = state.shift ? static_cast<T>(v.sum_g[c]) : T(0);
    }
  }
  if (!step.updates)
    return;
  if (config_.max_grad_norm > 0)
    square_rows(state.weight.gradient.get(), state.depth, state.padded, wide, depth.begin, depth.end,
                state.gradient_squares.get());
  else
    update_layer(step, layer, depth);
}

template <class T> void Network<T>::update_layer(const Step &step, int layer, Range depth) {
  LayerState<T> &state = layers_[layer];
  const auto update = [&](Parameter<T> &p, std::int64_t at, std::int64_t count) {
    kernels_.update(step.update, count, p.value.get() + at, p.gradient.get() + at,
                    p.first.get() ? p.first.get() + at : nullptr, p.second.get() ? p.second.get() + at : nullptr);
  };
  for (std::int64_t p = 0; p < panels_of(state.padded); ++p) {
    const std::int64_t wide = vectors_at(p, state.padded) * kernels_.width, at = p * panel_width() * state.depth;
    update(state.weight, at + depth.begin * wide, (depth.end - depth.begin) * wide);
    if (config_.optimizer_eps == 0) // Adam's 0 / 0 must not reach the padding
      for (std::int64_t k = depth.begin; k < depth.end; ++k)
        for (std::int64_t c = std::max<std::int64_t>(0, state.outputs - p * panel_width()); c < wide; ++c)
          state.weight.value[at + k * wide + c] = 0;
  }
  if (state.norm && step.worker == 0) {
    update(state.gamma, 0, state.outputs);
    if (state.shift)
      update(state.beta, 0, state.outputs);
  }
  if (layer > 0)
    kernels_.transpose(state.weight.value.get(), state.depth, state.outputs, state.back.get(), state.inputs,
                       static_cast<int>(depth.begin),
                       static_cast<int>(std::min<std::int64_t>(depth.end, state.inputs)));
}

// torch.nn.utils.clip_grad_norm_: g *= min(1, max_norm / (norm + 1e-6)), with the norm over all parameters.
template <class T> void Network<T>::clip_and_update(const Step &step) {
  double squares = 0;
  for (const LayerState<T> &state : layers_) {
    for (int k = 0; k < state.depth; ++k)
      squares += state.gradient_squares[k];
    for (int c = 0; state.norm && c < state.outputs; ++c)
      squares += static_cast<double>(state.gamma.gradient[c]) * static_cast<double>(state.gamma.gradient[c]) +
                 static_cast<double>(state.beta.gradient[c]) * static_cast<double>(state.beta.gradient[c]);
  }
  const T factor = static_cast<T>(std::min(1.0, config_.max_grad_norm / (std::sqrt(squares) + 1e-6)));
  if (team_->meet(step.worker)) // worker 0 scales the norms' gradients next, and everyone has to have read them
    return;
  for (int l = 0; l <= hidden(); ++l) {
    LayerState<T> &state = layers_[l];
    const Range depth = rows_of_depth(step.worker, state.depth);
    for (std::int64_t p = 0; p < panels_of(state.padded); ++p) {
      const std::int64_t wide = vectors_at(p, state.padded) * kernels_.width, at = p * panel_width() * state.depth;
      for (std::int64_t i = at + depth.begin * wide; i < at + depth.end * wide; ++i)
        state.weight.gradient[i] *= factor;
    }
    for (int c = 0; state.norm && step.worker == 0 && c < state.outputs; ++c) {
      state.gamma.gradient[c] *= factor;
      state.beta.gradient[c] *= factor;
    }
    update_layer(step, l, depth);
  }
}

template <class T> void Network<T>::add_penalty(const Step &step) {
  if (step.worker != 0 || config_.alpha == 0)
    return;
  double squares = 0;
  for (const LayerState<T> &state : layers_)
    for (int k = 0; k < state.inputs; ++k)
      squares += state.weight_squares[k];
  const double penalty =
      0.5 * step.penalty * squares * static_cast<double>(step.rows); // totals count each example once
  total_loss_ += penalty;
  total_penalty_ += penalty;
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
