// One step, as every worker lives it. `|` is a meeting: everyone waits for the last.
//
//   1  forward   Z0 = X W0             moments of own blocks   |  merged by everyone
//                Z1 = h(Z0) W1         moments                 |
//   2  output    o = h(Z1) W2, loss, dL/do
//   3  backward  g1 = dL/do W2^T, sums of g1 and g1 x̂          |  merged by everyone
//                g0 = dZ1 W1^T, sums;          then dW2        |
//   4  rest                                    dW1, dW0        |
//
// Only Z and g are stored. h(Z) and dZ are made again, block by block, where they are used: that is cheaper than a
// sweep through memory. The gradient of a weight matrix lags one meeting behind, because its update must not overtake a
// worker that still multiplies by the old weights; and so its work also fills the time in which others are waited for.
#include <cmath>

#include "network.h"

namespace wholebatch {

template <class T> typename Network<T>::Step Network<T>::begin(int worker, std::int64_t index) const {
  const Epoch &epoch = *epoch_;
  const std::int64_t *order = epoch.order + epoch.offsets[index];
  const std::int64_t rows = epoch.offsets[index + 1] - epoch.offsets[index];
  Step step{
      worker, index, rows, Blocks(rows), order, {}, {}, epoch.learning_rates != nullptr, 0, static_cast<double>(rows),
      rows};

  double weight = step.examples;
  const T *weights = epoch.table.weights;
  const bool by_class = config_.loss == LossKind::cross_entropy && class_weights_.size();
  if (weights || by_class) {
    weight = step.examples = 0;
    step.counted = 0;
    for (std::int64_t i = 0; i < rows; ++i) {
      const double own = static_cast<double>(weights ? weights[order[i]] : T(1));
      weight += own * static_cast<double>(by_class ? class_weights_[epoch.table.classes[order[i]]] : T(1));
      step.examples += own;
      step.counted += own != 0;
    }
  }
  step.loss = {config_.loss,
               layers_.back().outputs,
               static_cast<T>(config_.label_smoothing),
               static_cast<T>(config_.delta),
               class_weights_.size() ? class_weights_.get() : nullptr,
               weight > 0 ? config_.scale / weight : 0};
  step.penalty = step.examples > 0 ? config_.alpha / step.examples : 0;

  if (step.updates) {
    const double rate = epoch.learning_rates[index], t = static_cast<double>(epoch.first_step + index + 1);
    const double root_correction = std::sqrt(1 - std::pow(config_.beta2, t));
    step.update = {config_.optimizer,
                   config_.nesterov,
                   static_cast<T>(rate),
                   static_cast<T>(config_.optimizer_momentum),
                   static_cast<T>(config_.weight_decay),
                   static_cast<T>(config_.beta1),
                   static_cast<T>(config_.beta2),
                   static_cast<T>(config_.optimizer_eps / (config_.eps_hat ? root_correction : 1)),
                   static_cast<T>(rate / (1 - std::pow(config_.beta1, t))),
                   static_cast<T>(root_correction)};
  }
  return step;
}

template <class T> bool Network<T>::step(int worker, std::int64_t index) {
  const Step step = begin(worker, index);
  const int last = hidden();
  poll(worker);

  for (int l = 0; l < last; ++l) { // 1
    forward(step, l);
    if (!meet_after(step, l))
      return false;
  }
  output(step); // 2
  if ((config_.by_neuron || last == 0) && team_->meet(step.worker))
    return false;
  for (int l = last; l > 0; --l) { // 3
    backward(step, l);
    if (l < last)
      weight_gradient(step, l + 1);
    if (team_->meet(step.worker))
      return false;
    if (l == last)
      finish_loss(step);
    finish_sums(step, l - 1);
  }
  if (last == 0)
    finish_loss(step);
  for (int l = std::min(1, last); l >= 0; --l) // 4
    weight_gradient(step, l);
  if (config_.max_grad_norm > 0 && step.updates) {
    if (team_->meet(step.worker))
      return false;
    clip_and_update(step);
  }
  if (team_->meet(step.worker))
    return false;
  add_penalty(step);
  return true;
}

// The meeting between a hidden layer and what uses it. Without batch norm a worker goes on alone with its own examples.
template <class T> bool Network<T>::meet_after(const Step &step, int layer) {
  if ((config_.norm == Norm::batch || config_.by_neuron) && team_->meet(step.worker))
    return false;
  finish_moments(step, layer);
  if (row_norm() && config_.by_neuron) { // whole rows are there only now, and everyone needs all of them
    row_statistics(
        step, layer,
        {step.blocks.count * step.worker / config_.threads, step.blocks.count * (step.worker + 1) / config_.threads});
    return !team_->meet(step.worker);
  }
  return true;
}

template <class T> void Network<T>::row_statistics(const Step &step, int layer, Range blocks) {
  LayerState<T> &state = layers_[layer];
  const Between<T> between = this->between(step, layer);
  for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
    const Rows rows = rows_of(step.blocks, b);
    kernels_.row_statistics(between, rows, state.z.get() + rows.first * state.stride, state.stride);
  }
}

// A block of a layer's inputs into the worker's h: gathered from the table, or made again from the sums of the layer
// below.
template <class T>
void Network<T>::inputs(const Step &step, int layer, std::int64_t block, std::int64_t begin, std::int64_t end) {
  Workspace<T> &work = work_[step.worker];
  const Rows rows = rows_of(step.blocks, block);
  const LayerState<T> &state = layers_[layer];
  if (layer == 0) {
    gather(epoch_->table, step.order + rows.first, rows.count, begin, end, centred_, work.h.get());
    return;
  }
  const LayerState<T> &below = layers_[layer - 1];
  const int width = kernels_.width;
  Between<T> between = this->between(step, layer - 1);
  between.step = static_cast<std::uint32_t>(epoch_->first_step + step.index);
  const int from = static_cast<int>(begin) / width * width,
            until = std::min((static_cast<int>(end) + width - 1) / width * width, below.padded);
  kernels_.normalise(between, rows, below.z.get() + rows.first * below.stride, below.stride, from, until, work.h.get(),
                     ldh_);
  if (state.bias && end > state.inputs)
    for (int r = 0; r < rows.count; ++r)
      work.h[r * ldh_ + state.inputs] = T(1);
}

template <class T> Between<T> Network<T>::between(const Step &step, int layer) const {
  Between<T> b = between(step.worker, layer);
  b.weights = weighs_moments() ? epoch_->table.weights : nullptr;
  b.order = step.order;
  return b;
}

template <class T> void Network<T>::forward(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const Share share = this->share(step.worker, step.blocks.count, state.padded);
  const Between<T> between = this->between(step, layer);
  if (share.panels.begin == share.panels.end)
    return;
  for (std::int64_t b = share.blocks.begin; b < share.blocks.end; ++b) {
    poll(step.worker);
    if (layer > 0 && row_norm() && !config_.by_neuron)
      row_statistics(step, layer - 1, {b, b + 1});
    inputs(step, layer, b, 0, state.depth);
    const Rows rows = rows_of(step.blocks, b);
    for (std::int64_t p = share.panels.begin; p < share.panels.end; ++p) {
      const std::int64_t column = p * panel_width();
      const int vectors = vectors_at(p, state.padded);
      T *z = state.z.get() + rows.first * state.stride + column;
      kernels_.multiply(rows.count, state.depth, work_[step.worker].h.get(), ldh_,
                        state.weight.value.get() + column * state.depth, vectors, z, state.stride);
      if (config_.norm == Norm::batch) // while the panel is hot
        kernels_.moments(between, rows, z, state.stride, vectors, state.means.get() + b * state.padded + column,
                         state.m2s.get() + b * state.padded + column);
    }
  }
}

template <class T> void Network<T>::output(const Step &step) {
  const int last = hidden();
  LayerState<T> &state = layers_[last];
  const Table<T> &table = epoch_->table;
  const std::int64_t workers = config_.threads, count = step.blocks.count;
  for (std::int64_t b = count * step.worker / workers; b < count * (step.worker + 1) / workers; ++b) {
    poll(step.worker);
    if (last > 0 && row_norm() && !config_.by_neuron)
      row_statistics(step, last - 1, {b, b + 1});
    inputs(step, last, b, 0, state.depth);
    const Rows rows = rows_of(step.blocks, b);
    T *out = gradients_of(last) + rows.first * state.stride;
    for (std::int64_t p = 0; p < panels_of(state.padded); ++p)
      kernels_.multiply(rows.count, state.depth, work_[step.worker].h.get(), ldh_,
                        state.weight.value.get() + p * panel_width() * state.depth, vectors_at(p, state.padded),
                        out + p * panel_width(), state.stride);
    loss_blocks_[b] = kernels_.loss(step.loss, rows.count, out, state.stride, step.order + rows.first, table.classes,
                                    table.values, table.weights, work_[step.worker].turned.get());
  }
}

// dL/dZ of a block: made from g in the worker's dz, or g itself where nothing stands behind the sums.
template <class T>
const T *Network<T>::gradient_of_sums(const Step &step, int layer, std::int64_t block, std::int64_t &ld) {
  const LayerState<T> &state = layers_[layer];
  const Rows rows = rows_of(step.blocks, block);
  const T *g = gradients_of(layer) + rows.first * state.stride;
  ld = state.stride;
  if (layer == hidden() || config_.norm == Norm::none)
    return g;
  ld = lddz_;
  T *dz = work_[step.worker].dz.get();
  kernels_.input_gradient(between(step, layer), rows, state.z.get() + rows.first * state.stride, g, state.stride, 0,
                          state.padded, dz, lddz_);
  return dz;
}

template <class T> void Network<T>::backward(const Step &step, int layer) {
  const LayerState<T> &state = layers_[layer];
  LayerState<T> &below = layers_[layer - 1];
  const Share share = this->share(step.worker, step.blocks.count, below.padded);
  Between<T> between = this->between(step, layer - 1);
  between.step = static_cast<std::uint32_t>(epoch_->first_step + step.index);
  if (share.panels.begin == share.panels.end)
    return;
  for (std::int64_t b = share.blocks.begin; b < share.blocks.end; ++b) {
    poll(step.worker);
    std::int64_t ld;
    const T *dz = gradient_of_sums(step, layer, b, ld);
    const Rows rows = rows_of(step.blocks, b);
    for (std::int64_t p = share.panels.begin; p < share.panels.end; ++p) {
      const std::int64_t column = p * panel_width(), at = rows.first * below.stride + column;
      const int vectors = vectors_at(p, below.padded);
      T *g = gradients_of(layer - 1) + at;
      kernels_.multiply(rows.count, state.outputs, dz, ld, state.back.get() + column * state.outputs, vectors, g,
                        below.stride);
      double *sum_g = below.norm ? below.sum_gs.get() + b * below.padded + column : nullptr;
      double *sum_gx = below.norm ? below.sum_gxs.get() + b * below.padded + column : nullptr;
      kernels_.output_gradient(between, rows, below.z.get() + at, g, below.stride, static_cast<int>(column), vectors,
                               sum_g, sum_gx);
    }
  }
}

// How many examples a block of rows counts as.
template <class T> double Network<T>::count_of(const Step &step, Rows rows) const {
  if (!weighs_moments())
    return rows.count;
  double count = 0;
  for (std::int64_t r = rows.first; r < rows.first + rows.count; ++r)
    count += static_cast<double>(epoch_->table.weights[step.order[r]]);
  return count;
}

// From the blocks' moments to what normalises: every worker for itself, so that one meeting is enough.
template <class T> void Network<T>::finish_moments(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  if (!state.norm)
    return;
  auto &v = work_[step.worker].layers[layer];
  const int columns = state.padded;
  for (int c = 0; c < columns; ++c) { // copies, because worker 0 updates the originals while others still need these
    v.gamma[c] = state.gamma.value[c];
    v.beta[c] = state.beta.value[c];
  }
  if (config_.norm != Norm::batch)
    return;
  double *mean = v.merged_mean.get(), *m2 = v.merged_m2.get();
  merge_moments(
      step.blocks, [&](std::int64_t b) { return count_of(step, rows_of(step.blocks, b)); }, state.means.get(),
      state.m2s.get(), columns, mean, m2);
  const double whole = weighs_moments() ? step.examples : static_cast<double>(step.rows), count = whole > 0 ? whole : 1;
  for (int c = 0; c < columns; ++c) {
    const double rstd = 1 / std::sqrt(m2[c] / count + config_.eps);
    v.mean[c] = static_cast<T>(mean[c]);
    v.rstd[c] = static_cast<T>(rstd);
    v.scale[c] = static_cast<T>(static_cast<double>(v.gamma[c]) * rstd);
  }
  if (step.worker != 0 || !epoch_->track || whole == 0)
    return;
  state.tracked += 1;
  const double factor = config_.momentum < 0 ? 1 / state.tracked : config_.momentum;
  // Weights that count examples leave count - 1 of them; smaller ones (say, with a sum of 1) leave the rows less one.
  const double free = std::max(count, static_cast<double>(step.counted));
  const double unbiased = free == count ? 1 / std::max(1.0, count - 1) : free / (count * std::max(1.0, free - 1));
  for (int c = 0; c < state.outputs; ++c) {
    double whole_mean = mean[c];
    if (layer == 0 && centred_) { // the mean of the sums as they would have been
      const Column column = this->column(state, c);
      for (int k = 0; k < state.inputs; ++k)
        whole_mean += static_cast<double>(state.weight.value[column.at(k)]) * static_cast<double>(centre_[k]);
    }
    state.running_mean[c] += factor * (whole_mean - state.running_mean[c]);
    state.running_var[c] += factor * (m2[c] * unbiased - state.running_var[c]);
  }
}

template <class T> void Network<T>::finish_sums(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  if (!state.norm || (config_.norm != Norm::batch && step.worker != 0))
    return;
  auto &v = work_[step.worker].layers[layer];
  merge_sums(step.blocks, state.sum_gs.get(), state.padded, v.sum_g.get());
  merge_sums(step.blocks, state.sum_gxs.get(), state.padded, v.sum_gx.get());
  const double whole = weighs_moments() ? step.examples : static_cast<double>(step.rows), count = whole > 0 ? whole : 1;
  if (config_.norm == Norm::batch)
    for (int c = 0; c < state.padded; ++c) {
      const double scale = static_cast<double>(v.scale[c]);
      v.k1[c] = static_cast<T>(-scale * v.sum_g[c] / count);
      v.k2[c] = static_cast<T>(-scale * static_cast<double>(v.rstd[c]) * v.sum_gx[c] / count);
    }
}

// Worker 0 adds up the loss; where it is not finite it looks for the first layer with such a value, and everyone leaves
// at the next meeting.
template <class T> void Network<T>::finish_loss(const Step &step) {
  if (step.worker != 0)
    return;
  double loss = 0;
  for (std::int64_t b = 0; b < step.blocks.count; ++b)
    loss += loss_blocks_[b];
  total_loss_ += loss * static_cast<double>(step.rows);
  examples_ += step.rows;
  if (std::isfinite(loss) || error_)
    return;
  int first = static_cast<int>(layers_.size());
  for (int l = hidden() - 1; l >= 0; --l) {
    const LayerState<T> &state = layers_[l];
    bool finite = true;
    for (std::int64_t r = 0; r < step.rows; ++r)
      for (int c = 0; c < state.outputs; ++c)
        finite = finite && std::isfinite(state.z[r * state.stride + c]);
    if (!finite)
      first = l + 1;
  }
  error_ = std::make_exception_ptr(Diverged{step.index + 1, first});
  team_->ask_to_stop();
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
