// One step, as every worker lives it. `|` is a meeting: everyone waits for the last.
//
//   1  forward   Z0 = X W0             moments of own blocks   |  merged by everyone
//                Z1 = h(Z0) W1         moments                 |
//   2  output    o = h(Z1) W2, loss, dL/do
//   3  backward  g1 = dL/do W2^T, sums of g1 and g1 x̂          |  merged by everyone
//                g0 = dZ1 W1^T, sums;          then dW2        |
//   4  rest                                    dW1, dW0        |
//
// Only Z and g are stored. h(Z) is made again, block by block, where it is used: that is cheaper than a sweep through
// memory. dZ takes g's place where a worker has the rows to itself. The gradient of a weight matrix lags one meeting
// behind, because its update must not overtake a worker that still multiplies by the old weights; and so its work also
// fills the time in which others are waited for. In a tall mini-batch the way down forms each block's part of it, while
// h and dZ are in cache, and only sums over groups of blocks are left to be added up.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "network.h"

namespace wholebatch {

template <class T> typename Network<T>::Step Network<T>::begin(int worker, std::int64_t index) {
  const Epoch &epoch = *epoch_;
  const std::int64_t *order = epoch.order + epoch.offsets[index];
  const std::int64_t rows = epoch.offsets[index + 1] - epoch.offsets[index];
  std::int64_t whole = rows;
  if (const std::int64_t *counts = epoch.spread.counts) {
    counts += index * epoch.spread.shards;
    whole = std::accumulate(counts, counts + epoch.spread.shards, std::int64_t{0});
  }
  Step step{worker,
            index,
            rows,
            whole,
            layout_.of(index),
            order,
            {},
            {},
            epoch.learning_rates != nullptr,
            0,
            static_cast<double>(whole),
            whole};
  for (auto &layer : work_[worker].layers) {
    layer.between.step = static_cast<std::uint32_t>(epoch.first_step + index);
    layer.between.weights = weighs_moments() ? epoch.table.weights : nullptr;
    layer.between.order = order;
  }

  double weight = step.examples;
  weigh(step, weight);
  step.loss = {config_.loss,
               layers_.back().outputs,
               static_cast<T>(config_.label_smoothing),
               static_cast<T>(config_.delta),
               class_weights_.size() ? class_weights_.get() : nullptr,
               weight > 0 ? config_.scale / weight : 0};
  step.penalty = step.examples > 0 ? config_.alpha / step.examples : 0;

  if (step.updates) {
    const double rate = epoch.learning_rates[index], t = static_cast<double>(epoch.first_step + index + 1);
    const bool adam = config_.optimizer != OptimizerKind::sgd;
    const double root_correction = adam ? std::sqrt(1 - std::pow(config_.beta2, t)) : 1;
    step.update = {config_.optimizer,
                   config_.nesterov,
                   static_cast<T>(rate),
                   static_cast<T>(config_.optimizer_momentum),
                   static_cast<T>(config_.weight_decay),
                   static_cast<T>(config_.beta1),
                   static_cast<T>(config_.beta2),
                   static_cast<T>(config_.optimizer_eps / (config_.eps_hat ? root_correction : 1)),
                   static_cast<T>(adam ? rate / (1 - std::pow(config_.beta1, t)) : rate),
                   static_cast<T>(root_correction)};
  }
  return step;
}

// The sums of the examples' weights, and that of what multiplies their losses.
template <class T> void Network<T>::weigh(Step &step, double &weight) const {
  const Table<T> &table = epoch_->table;
  const bool by_class = config_.loss == LossKind::cross_entropy && class_weights_.size();
  if (!table.weights && !by_class)
    return;
  weight = step.examples = 0;
  step.counted = 0;
  if (is_spread()) { // every rank needs those of all shards
    const double *sums = epoch_->spread.weighings + step.index * epoch_->spread.shards * 3;
    for (int s = 0; s < epoch_->spread.shards; ++s, sums += 3) {
      weight += sums[0];
      step.examples += sums[1];
      step.counted += static_cast<std::int64_t>(sums[2]);
    }
    return;
  }
  for (std::int64_t i = 0; i < step.rows; ++i) {
    const double own = static_cast<double>(table.weights ? table.weights[step.order[i]] : T(1));
    weight += own * static_cast<double>(by_class ? class_weights_[table.classes[step.order[i]]] : T(1));
    step.examples += own;
    step.counted += own != 0;
  }
}

template <class T> bool Network<T>::step(int worker, std::int64_t index) {
  if (timeline_)
    timeline_->lane(worker).begin(index);
  const Step step = begin(worker, index);
  const int last = hidden();
  poll(worker);
  deal(worker, index, true); // the others' are dealt: nobody has to wait for a straggler before doing his part

  if (!up(step)) // 1, 2
    return false;
  for (int l = last; l > 0; --l) { // 3
    down(step, l);
    if (l < last) {
      weight_gradient(step, l + 1);
      computed(step, Stage::update, l + 1);
    }
    if (meet(step, Stage::backward, l - 1))
      return false;
    if (l == last && worker == 0) {
      finish_loss(step, loss_of(step.blocks.shard(0)));
      computed(step, Stage::loss, last);
    }
    finish_sums(step, l - 1);
    if (config_.norm == Norm::batch || (config_.norm != Norm::none && worker == 0))
      merged(step, Stage::backward, l - 1);
  }
  if (last == 0) {
    if (worker == 0)
      finish_loss(step, loss_of(step.blocks.shard(0)));
  } else { // 4
    weight_gradient(step, 1);
    computed(step, Stage::update, 1);
  }
  if (!form_first_gradient(step))
    return false;
  weight_gradient(step, 0);
  computed(step, Stage::update, 0);
  return end_update(step);
}

// Through all layers: hidden ones, and the output layer where nobody has its block in cache on the way down.
template <class T> bool Network<T>::up(const Step &step) {
  for (int l = 0; l < hidden(); ++l) {
    forward(step, l);
    computed(step, Stage::forward, l);
    if (!meet_after(step, l))
      return false;
  }
  if (!config_.by_neuron && hidden() > 0)
    return true;
  outputs(step);
  return !meet(step, Stage::loss, hidden());
}

// dL/dZ of the first layer, where the way down has not left it there.
template <class T> bool Network<T>::form_first_gradient(const Step &step) {
  if (!has_first_gradient_to_form(step))
    return true;
  each_own_block(step, Phase::backward, 0, [&](std::int64_t b) { backward(step, 0, b, false); });
  computed(step, Stage::backward, 0);
  return !meet(step, Stage::gradient, 0);
}

// What is left when all gradients are there: the update where it waits for their norm, and the meeting before the next
// step.
template <class T> bool Network<T>::end_update(const Step &step) {
  if (config_.max_grad_norm > 0 && step.updates) {
    if (meet(step, Stage::norm, -1))
      return false;
    clip_and_update(step);
    computed(step, Stage::update, -1);
  }
  deal(step.worker, step.index + 1, false);
  if (meet(step, Stage::update, -1))
    return false;
  add_penalty(step);
  return true;
}

// The output layer where nobody passes it on while it is in cache.
template <class T> void Network<T>::outputs(const Step &step) {
  const std::int64_t workers = config_.threads, count = step.blocks.count;
  each_block(step, {count * step.worker / workers, count * (step.worker + 1) / workers},
             [&](std::int64_t b) { output(step, b); });
  computed(step, Stage::loss, hidden());
}

// From a layer down to the one below.
template <class T> void Network<T>::down(const Step &step, int layer) {
  const bool with_output = layer == hidden() && !config_.by_neuron; // while the block is in cache
  each_own_block(step, Phase::backward, layer, [&](std::int64_t b) {
    if (with_output)
      output(step, b);
    backward(step, layer, b, with_output);
  });
  computed(step, with_output ? Stage::loss : Stage::backward, layer);
}

// The meeting between a hidden layer and what uses it. Without batch norm a worker goes on alone with its own examples.
template <class T> bool Network<T>::meet_after(const Step &step, int layer) {
  if ((config_.norm == Norm::batch || config_.by_neuron) && meet(step, Stage::forward, layer))
    return false;
  if (is_spread() && config_.norm == Norm::batch) {
    share_moments(step, layer);
    if (meet(step, Stage::forward, layer))
      return false;
  }
  finish_moments(step, layer);
  if (config_.norm == Norm::batch)
    merged(step, Stage::forward, layer);
  if (row_norm() && config_.by_neuron) { // whole rows are there only now, and everyone needs all of them
    row_statistics(
        step, layer,
        {step.blocks.count * step.worker / config_.threads, step.blocks.count * (step.worker + 1) / config_.threads});
    computed(step, Stage::forward, layer);
    return !meet(step, Stage::rows, layer);
  }
  return true;
}

template <class T> void Network<T>::row_statistics(const Step &step, int layer, Range blocks) {
  LayerState<T> &state = layers_[layer];
  for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
    const Rows rows = step.blocks.at(b);
    kernels_.row_statistics(between(step, layer), rows, state.z.get() + rows.first * state.stride, state.stride);
  }
}

template <class T> typename Network<T>::Matrix Network<T>::place_of_inputs(const Step &step, int layer, Rows rows) {
  LayerState<T> &state = layers_[layer];
  Workspace<T> &work = work_[step.worker];
  if (!state.keeps_inputs)
    return {work.h.get(), state.ldh};
  T *all = config_.by_neuron ? work.layers[layer].h.get() : state.h.get();
  return {all + rows.first * state.ldh, state.ldh};
}

// Columns [begin, end) of a block of a layer's inputs: gathered from the table, or made again from the sums of the
// layer below. again: they were asked for in this step before.
template <class T>
typename Network<T>::Matrix Network<T>::inputs(const Step &step, int layer, std::int64_t block, std::int64_t begin,
                                               std::int64_t end, bool again) {
  const Rows rows = step.blocks.at(block);
  const LayerState<T> &state = layers_[layer];
  const Matrix h = place_of_inputs(step, layer, rows);
  if (again && state.keeps_inputs)
    return h;
  if (layer == 0) {
    gather(epoch_->table, step.order + rows.first, rows.count, begin, end, centred_, h.at, h.ld);
    return h;
  }
  const LayerState<T> &below = layers_[layer - 1];
  const int width = kernels_.width;
  const int from = static_cast<int>(begin) / width * width,
            until = std::min((static_cast<int>(end) + width - 1) / width * width, below.padded);
  kernels_.normalise(between(step, layer - 1), rows, below.z.get() + rows.first * below.stride, below.stride, from,
                     until, h.at, h.ld);
  if (state.bias && end > state.inputs)
    for (int r = 0; r < rows.count; ++r)
      h.at[r * h.ld + state.inputs] = T(1);
  return h;
}

template <class T> void Network<T>::forward(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const Range panels = own_panels(step, state.panels);
  if (panels.begin == panels.end)
    return;
  each_own_block(step, Phase::forward, layer, [&](std::int64_t b) {
    if (layer > 0 && row_norm() && !config_.by_neuron)
      row_statistics(step, layer - 1, {b, b + 1});
    const Rows rows = step.blocks.at(b);
    const Left h = left_operand(step.worker, rows.count, layer, Way::forward,
                                inputs(step, layer, b, 0, state.depth, false), panels.end - panels.begin);
    const Wanted &wanted = want_up(step, layer, b);
    for (std::int64_t p = panels.begin; p < panels.end; ++p) {
      const std::int64_t column = state.panels.first(p);
      T *z = state.z.get() + rows.first * state.stride + column;
      multiply(h, rows.count, layer, Way::forward, p, z, state.stride,
               wanted.part(p - panels.begin, panels.end - panels.begin));
      if (config_.norm == Norm::batch) // while the panel is hot
        kernels_.moments(between(step, layer), rows, z, state.stride, state.panels.vectors(p),
                         state.means.get() + b * state.padded + column, state.m2s.get() + b * state.padded + column);
    }
  });
}

template <class T> void Network<T>::output(const Step &step, std::int64_t block) {
  const int last = hidden();
  LayerState<T> &state = layers_[last];
  const Table<T> &table = epoch_->table;
  if (last > 0 && row_norm() && !config_.by_neuron)
    row_statistics(step, last - 1, {block, block + 1});
  const Rows rows = step.blocks.at(block);
  const Left h = left_operand(step.worker, rows.count, last, Way::forward,
                              inputs(step, last, block, 0, state.depth, false), state.panels.count());
  T *out = gradients_of(last) + rows.first * state.stride;
  for (std::int64_t p = 0; p < state.panels.count(); ++p)
    multiply(h, rows.count, last, Way::forward, p, out + state.panels.first(p), state.stride, {});
  loss_blocks_[block] = kernels_.loss(step.loss, rows.count, out, state.stride, step.order + rows.first, table.classes,
                                      table.values, table.weights, work_[step.worker].turned.get());
}

// dL/dZ of a block, for some panels: dL/dy itself where nothing stands behind the sums, in its place where no other
// worker reads it, else in the worker's dz.
template <class T>
typename Network<T>::Matrix Network<T>::gradient_of_sums(const Step &step, int layer, std::int64_t block,
                                                         Range panels) {
  const LayerState<T> &state = layers_[layer];
  const Rows rows = step.blocks.at(block);
  T *g = gradients_of(layer) + rows.first * state.stride;
  if (layer == hidden() || config_.norm == Norm::none)
    return {g, state.stride};
  const Matrix dz =
      has_gradient_of_sums(step, layer) ? Matrix{g, state.stride} : Matrix{work_[step.worker].dz.get(), lddz_};
  const int begin = static_cast<int>(state.panels.first(panels.begin)),
            end = static_cast<int>(state.panels.first(panels.end));
  kernels_.input_gradient(between(step, layer), rows, state.z.get() + rows.first * state.stride, g, state.stride, begin,
                          end, dz.at, dz.ld);
  return dz;
}

// From dL/dy of a layer to dL/dy of the one below, for one block; and, where it is summed in groups, to the gradient of
// the layer's weights.
template <class T> void Network<T>::backward(const Step &step, int layer, std::int64_t block, bool has_inputs) {
  const LayerState<T> &state = layers_[layer];
  const Range all = state.panels.all();
  const bool grouped = is_grouped(step, layer) && !config_.by_neuron;
  const Range panels = layer > 0 ? own_panels(step, layers_[layer - 1].panels) : Range{0, 0};
  if (layer > 0 && panels.begin == panels.end)
    return;
  const Matrix dz = gradient_of_sums(step, layer, block, all);
  const Rows rows = step.blocks.at(block);
  const Wanted &wanted = want_down(step, layer, block, has_inputs);
  const std::int64_t gradient_parts = grouped ? all.end : 0, parts = gradient_parts + panels.end - panels.begin;
  if (grouped) {
    const Matrix h = has_inputs ? place_of_inputs(step, layer, rows) : inputs(step, layer, block, 0, state.depth, true);
    add_to_part(step, layer, block, h, dz, all, wanted, parts);
  } else if (products_ && !config_.by_neuron) {
    keep_gradient(step, layer, block, dz, all);
  }
  if (layer == 0)
    return;
  LayerState<T> &below = layers_[layer - 1];
  const Left left = left_operand(step.worker, rows.count, layer, Way::back, dz, panels.end - panels.begin);
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const std::int64_t column = below.panels.first(p), at = rows.first * below.stride + column;
    T *g = gradients_of(layer - 1) + at;
    multiply(left, rows.count, layer, Way::back, p, g, below.stride,
             wanted.part(gradient_parts + p - panels.begin, parts));
    double *sum_g = below.norm ? below.sum_gs.get() + block * below.padded + column : nullptr;
    double *sum_gx = below.norm ? below.sum_gxs.get() + block * below.padded + column : nullptr;
    kernels_.output_gradient(between(step, layer - 1), rows, below.z.get() + at, g, below.stride,
                             static_cast<int>(column), below.panels.vectors(p), sum_g, sum_gx);
  }
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
