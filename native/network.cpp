#include "network.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "product_unit.h"
#include "subnormals.h"

namespace wholebatch {

namespace {

constexpr std::int64_t poll_nanoseconds = 50'000'000;
constexpr std::int64_t kept_bytes = std::int64_t{1} << 20; // about a second-level cache

std::int64_t whole(std::int64_t count, std::int64_t unit) { return (count + unit - 1) / unit * unit; }

// Rows an odd number of cache lines apart do not crowd the same cache sets.
std::int64_t odd_lines(std::int64_t count, std::int64_t line) {
  return whole(count, line) / line % 2 ? whole(count, line) : whole(count, line) + line;
}

} // namespace

template <class T> void Parameter<T>::resize(std::size_t count, OptimizerKind optimizer, bool momentum) {
  value.resize(count);
  gradient.resize(count);
  if (optimizer == OptimizerKind::sgd ? momentum : optimizer != OptimizerKind::none)
    first.resize(count);
  if (optimizer == OptimizerKind::adam || optimizer == OptimizerKind::adamw)
    second.resize(count);
}

template <class T>
Network<T>::Network(const Configuration &configuration, const Kernels<T> &kernels)
    : config_(configuration), kernels_(kernels), products_(products<T>(configuration.matmul_precision)),
      rounded_parts_(configuration.matmul_precision == MatmulPrecision::high ? 2 : 1),
      claims_(phases * (static_cast<int>(configuration.sizes.size()) - 1), configuration.threads) {
  const auto &sizes = config_.sizes;
  const int count = static_cast<int>(sizes.size()) - 1, width = kernels_.width;
  const std::int64_t line = 64 / sizeof(T);
  layers_.resize(count);
  for (int l = 0; l < count; ++l) {
    LayerState<T> &layer = layers_[l];
    const bool hidden = l + 1 < count;
    layer.inputs = sizes[l];
    layer.outputs = sizes[l + 1];
    layer.bias = !hidden || config_.hidden_bias;
    layer.norm = hidden && config_.norm != Norm::none;
    layer.shift = layer.norm && config_.norm != Norm::rms;
    layer.depth = layer.inputs + (layer.bias ? 1 : 0);
    layer.padded = static_cast<int>(whole(layer.outputs, width));
    // The units for rounded operands take pairs of vectors; and ranks have the same panels, whatever their threads.
    layer.panels = {layer.outputs, width, config_.by_neuron ? config_.threads : 1,
                    products_ || config_.spread ? Panels::most : 1};
    layer.stride = layer.padded * static_cast<std::int64_t>(sizeof(T)) % 1024 ? layer.padded : layer.padded + line;
    const bool momentum = config_.optimizer_momentum != 0;
    layer.weight.resize(static_cast<std::size_t>(layer.depth) * layer.padded, config_.optimizer, momentum);
    if (products_) {
      layer.rounded.resize(rounded_size(layer.padded, steps_of(layer.inputs)));
      layer.rounded_back.resize(l > 0 ? rounded_size(layer.inputs, steps_of(layer.outputs)) : 0);
    } else if (l > 0) {
      layer.back.resize(static_cast<std::size_t>(layer.outputs) * whole(layer.inputs, width));
    }
    layer.real.resize(layer.padded);
    std::fill_n(layer.real.get(), layer.outputs, T(1));
    for (Buffer<double> *squares : {&layer.weight_squares, &layer.gradient_squares})
      squares->resize(layer.padded / width * layer.depth);
    if (layer.norm) {
      layer.gamma.resize(layer.padded, config_.optimizer, momentum);
      layer.beta.resize(layer.padded, config_.optimizer, momentum);
      layer.running_mean.resize(layer.padded);
      layer.running_var.resize(layer.padded);
    }
    layer.ldh = odd_lines(std::max<std::int64_t>(layer.depth, whole(layer.inputs, width)), line);
    ldh_ = std::max(ldh_, layer.ldh);
    if (summed_in_groups(layer)) {
      part_size_ = std::max(part_size_, static_cast<std::int64_t>(layer.weight.value.size()));
      part_weights_ = std::max(part_weights_, weights_of(layer));
    }
    lddz_ = std::max(lddz_, odd_lines(layer.padded, line));
    layer.stretch = stretch_of(layer);
    part_offsets_.push_back(part_offsets_.back() + whole(static_cast<std::int64_t>(layer.weight.value.size()), line));
  }
  work_.resize(config_.threads);
  for (auto &work : work_) {
    work.h.resize(Blocks::most * ldh_);
    work.dz.resize(Blocks::most * lddz_);
    work.packed.resize(Blocks::most * std::max(ldh_, lddz_) + width);
    work.panel.resize(Blocks::most * Panels::most * width);
    work.wanted.reserve(Blocks::most * 3 * (std::max(ldh_, lddz_) / line + 2));
    work.turned.resize(static_cast<std::size_t>(layers_.back().padded) * width);
    work.row_mean.resize(Blocks::most);
    work.row_rstd.resize(Blocks::most);
    work.layers.resize(count);
    for (int l = 0; l < count; ++l) {
      auto &v = work.layers[l];
      for (Buffer<T> *buffer : {&v.mean, &v.rstd, &v.scale, &v.gamma, &v.beta, &v.k1, &v.k2})
        buffer->resize(layers_[l].padded);
      for (Buffer<double> *buffer : {&v.merged_mean, &v.merged_m2, &v.merged_g, &v.merged_gx})
        buffer->resize(layers_[l].padded);
    }
  }
  class_weights_.resize(config_.class_weights.size());
  std::copy(config_.class_weights.begin(), config_.class_weights.end(), class_weights_.get());
  centre_.resize(sizes[0]);
  centre_sums_.resize(layers_.front().padded);
}

template <class T> typename Network<T>::Column Network<T>::column(const LayerState<T> &layer, int output) const {
  const std::int64_t panel = layer.panels.of_output(output), first = layer.panels.first(panel);
  return {static_cast<std::size_t>(first * layer.depth + output - first),
          static_cast<std::size_t>(layer.panels.wide(panel))};
}

template <class T>
void Network<T>::exchange_weights(const LayerState<T> &layer, bool to_net, T *rows, Buffer<T> &buffer) {
  const Panels &panels = layer.panels;
  for (std::int64_t p = 0; p < panels.count(); ++p)
    kernels_.exchange(to_net, rows + panels.first(p) * layer.inputs, layer.inputs, panels.columns(p),
                      buffer.get() + panels.first(p) * layer.depth, static_cast<int>(panels.wide(p)));
}

template <class T> bool Network<T>::is_finite(std::size_t layer) const {
  const LayerState<T> &state = layers_.at(layer);
  int others = 0;
  for (const Buffer<T> *of : {&state.weight.value, &state.gamma.value, &state.beta.value}) {
    const T *values = of->get();
    for (std::size_t i = 0; i < of->size(); ++i)
      others |= !(values[i] * T(0) == T(0)); // 0 times infinity is nan
  }
  return others == 0;
}

template <class T> void Network<T>::refresh() {
  for (int l = products_ ? 0 : 1; l <= hidden(); ++l) {
    LayerState<T> &layer = layers_[l];
    if (products_) {
      round_weights(l, {{0, layer.depth}, layer.panels.all()});
      continue;
    }
    for (std::int64_t p = 0; p < layer.panels.count(); ++p)
      transpose(l, p, {0, layer.inputs});
  }
}

// Some inputs of a panel of weights, into the panels that the way back multiplies by.
template <class T> void Network<T>::transpose(int layer, std::int64_t panel, Range inputs) {
  LayerState<T> &state = layers_[layer];
  const Panels &from = state.panels, &to = layers_[layer - 1].panels;
  const T *weights = state.weight.value.get() + from.first(panel) * state.depth;
  for (std::int64_t p = 0; p < to.count(); ++p) {
    const std::int64_t first = to.first(p), begin = std::max(inputs.begin, first),
                       end = std::min(inputs.end, first + to.columns(p));
    if (begin < end)
      kernels_.transpose(weights + begin * from.wide(panel), static_cast<int>(from.wide(panel)), from.columns(panel),
                         state.back.get() + first * state.outputs + from.first(panel) * to.wide(p),
                         static_cast<int>(to.wide(p)), static_cast<int>(begin - first), static_cast<int>(end - first),
                         to.columns(p));
  }
}

template <class T> Team &Network<T>::team() {
  if (!team_ || !team_->is_here())
    team_ = std::make_unique<Team>(config_.threads);
  return *team_;
}

template <class T> void Network<T>::prepare(const Layout &layout) {
  const std::int64_t most_rows = layout.most_rows, blocks = layout.most_blocks;
  std::int64_t widest = 0;
  for (int l = 0; l <= hidden(); ++l) {
    LayerState<T> &layer = layers_[l];
    widest = std::max(widest, layer.stride);
    layer.keeps_inputs = most_rows * layer.ldh * static_cast<std::int64_t>(sizeof(T)) <= kept_bytes;
    if (layer.keeps_inputs && !config_.by_neuron)
      layer.h.resize(most_rows * layer.ldh);
    for (Workspace<T> &work : work_)
      if (layer.keeps_inputs && config_.by_neuron)
        work.layers[l].h.resize(most_rows * layer.ldh);
    if (l == hidden())
      break;
    layer.z.resize(most_rows * layer.stride);
    if (row_norm()) {
      layer.row_mean.resize(most_rows);
      layer.row_rstd.resize(most_rows);
    }
    if (layer.norm)
      for (Buffer<double> *table : {&layer.means, &layer.m2s, &layer.sum_gs, &layer.sum_gxs})
        table->resize(blocks * layer.padded);
  }
  for (int i = 0; i < std::min(3, hidden() + 1); ++i)
    g_[i].resize(most_rows * widest);
  loss_blocks_.resize(blocks);
  if (products_)
    prepare_products();
  for (int i = 0; i < std::min(2, hidden() + 1); ++i)
    parts_[i].resize(layout.most_groups * part_size_);
  for (int w = 0; w < config_.threads; ++w)
    for (int l = 0; l < hidden(); ++l)
      prepare_between(w, l);
}

// Sums over groups of blocks make the gradient of a weight matrix the work of whoever has a block's h and dZ in cache.
// The groups are a function of shapes alone. They are few enough for their sums to stay in cache, and for 64 threads
// enough.
template <class T> int Network<T>::groups_of(std::int64_t blocks) const {
  constexpr std::int64_t most = 64, elements = std::int64_t{1} << 21;
  int groups = 1;
  while (groups * 2 <= std::min({most, blocks / 4, elements / part_weights_}))
    groups *= 2;
  return groups;
}

template <class T>
void Network<T>::gather(const Table<T> &table, const std::int64_t *rows, int count, std::int64_t begin,
                        std::int64_t end, bool centred, T *h, std::int64_t ldh) const {
  const std::int64_t columns = config_.sizes[0], stop = std::min(end, columns);
  const auto sparse = [&](const auto *indices, const auto *indptr, std::int64_t row, T *to) {
    for (std::int64_t c = begin; c < stop; ++c)
      to[c] = centred ? -centre_[c] : T(0);
    const auto *first = indices + indptr[row], *last = indices + indptr[row + 1];
    for (const auto *i = std::lower_bound(first, last, begin); i != last && *i < stop; ++i)
      to[*i] += table.data[i - indices];
  };
  if (table.dense) {
    kernels_.gather(table.dense, columns, rows, count, begin, stop, centred ? centre_.get() : nullptr, h, ldh);
  } else {
    T *to = h;
    for (int r = 0; r < count; ++r, to += ldh) {
      if (table.indices32)
        sparse(table.indices32, table.indptr32, rows[r], to);
      else
        sparse(table.indices64, table.indptr64, rows[r], to);
    }
  }
  for (int r = 0; end > columns && r < count; ++r)
    h[r * ldh + columns] = T(1);
}

template <class T> void Network<T>::prepare_between(int worker, int layer) {
  LayerState<T> &state = layers_[layer];
  auto &v = work_[worker].layers[layer];
  Between<T> &b = v.between;
  b = {};
  b.norm = config_.norm;
  b.after = config_.after;
  b.activation = config_.activation;
  b.columns = state.outputs;
  b.eps = static_cast<T>(config_.eps);
  b.real = state.real.get();
  b.mean = v.mean.get();
  b.rstd = v.rstd.get();
  b.scale = v.scale.get();
  b.gamma = v.gamma.get();
  b.beta = v.beta.get();
  b.k1 = v.k1.get();
  b.k2 = v.k2.get();
  b.row_mean = state.row_mean.get();
  b.row_rstd = state.row_rstd.get();
  b.seed = config_.seed;
  b.threshold = static_cast<std::uint32_t>(config_.dropout * 4294967296.0);
  b.layer = static_cast<std::uint32_t>(layer);
  b.keep_scale = static_cast<T>(1 / (1 - config_.dropout));
}

// By example a worker has its own rows and all columns; by neuron it has all rows and its own columns. Every element is
// computed alike either way, so the choice changes no bit.
template <class T> Range Network<T>::own_blocks(const Step &step) const {
  const Blocks &blocks = step.blocks;
  const std::int64_t workers = config_.threads;
  if (config_.by_neuron || workers == 1)
    return {0, blocks.count};
  const auto begin = [&](std::int64_t worker) { // whole groups
    return blocks.grouped ? blocks.group_begin(blocks.groups * worker / workers) : blocks.count * worker / workers;
  };
  return {begin(step.worker), begin(step.worker + 1)};
}

template <class T> std::int64_t Network<T>::units_of(const Blocks &blocks, Phase phase, int layer) const {
  if (is_of_weights(phase)) {
    const std::int64_t stretch = layers_[layer].stretch;
    return (layers_[layer].depth + stretch - 1) / stretch;
  }
  return units_are_groups(blocks, phase, layer) ? blocks.groups : blocks.count;
}

// How many rows of a weight matrix one gets its gradient for at a time: their gradients stay in the second-level cache
// while all examples pass by, there are about three for every worker, all workers are dealt nearly as many rows, and
// they are whole vectors of h.
template <class T> std::int64_t Network<T>::stretch_of(const LayerState<T> &layer) const {
  const std::int64_t most = std::int64_t{1} << (products_ ? 18 : 19), unit = products_ ? Tiles::inner : 16,
                     workers = config_.threads, depth = layer.depth;
  const std::int64_t cached = std::max<std::int64_t>(1, most / layer.padded / unit) * unit;
  const std::int64_t each = workers == 1 ? depth : (depth + 3 * workers - 1) / (3 * workers);
  const std::int64_t largest = std::min(cached, whole(each, unit));
  std::int64_t best = largest, fewest = 0; // rows of the worker that has most
  for (std::int64_t stretch = largest; workers > 1 && stretch >= std::max(unit, largest / 2); stretch -= unit) {
    const std::int64_t units = (depth + stretch - 1) / stretch;
    std::int64_t rows = 0;
    for (std::int64_t w = 0; w < workers; ++w)
      rows = std::max(rows, std::min(depth, units * (w + 1) / workers * stretch) - units * w / workers * stretch);
    if (fewest == 0 || rows * 64 < fewest * 63) { // smaller ones only where it pays
      best = stretch;
      fewest = rows;
    }
  }
  return best;
}

// Deals out the units of the step `index`: those of weight matrices, or all others.
template <class T> void Network<T>::deal(int worker, std::int64_t index, bool of_weights) {
  if (config_.threads == 1 || config_.by_neuron || index >= epoch_->steps)
    return;
  const Blocks blocks = layout_.of(index);
  for (int l = 0; l <= hidden(); ++l)
    for (Phase phase : {Phase::forward, Phase::backward, Phase::gradient, Phase::reduction})
      if (is_of_weights(phase) == of_weights)
        claims_.deal(set_of(phase, l), worker, units_of(blocks, phase, l));
}

// The part of a weight matrix that is this worker's: by neuron in everything, the outputs that it also multiplies by,
// which stay in its cache from step to step; by example in what waits for the gradient's norm. The output layer, whose
// few outputs go unevenly into the workers and which is multiplied by blocks, is shared out by inputs either way, where
// nothing else forms its gradient by panels.
template <class T> typename Network<T>::Tile Network<T>::tile(const Step &step, int index) const {
  const LayerState<T> &layer = layers_[index];
  const std::int64_t worker = step.worker, workers = config_.threads;
  if (config_.by_neuron && (index < hidden() || products_ || is_grouped(step, index)))
    return {{0, layer.depth}, layer.panels.of(step.worker)};
  const std::int64_t unit = products_ ? Tiles::inner : 4; // whole quadruples fill register tiles
  const std::int64_t units = (layer.depth + unit - 1) / unit;
  return {{std::min<std::int64_t>(layer.depth, units * worker / workers * unit),
           std::min<std::int64_t>(layer.depth, units * (worker + 1) / workers * unit)},
          layer.panels.all()};
}

// Worker 0 is the calling thread: it is the one that may ask Python whether there was a Ctrl-C.
template <class T> void Network<T>::poll(int worker) {
  if (worker != 0 || error_)
    return;
  const std::int64_t time = Ticks::steady();
  if (time < next_poll_)
    return;
  next_poll_ = time + poll_nanoseconds;
  try {
    epoch_->poll(examples_, total_loss_);
  } catch (...) {
    error_ = std::current_exception();
    team_->ask_to_stop();
  }
}

template <class T> void Network<T>::open(const Epoch &epoch) {
  epoch_ = &epoch;
  error_ = nullptr;
  total_loss_ = total_penalty_ = 0;
  examples_ = exchanged_ = awaited_ = 0;
  next_poll_ = Ticks::steady() + poll_nanoseconds;
}

template <class T> void Network<T>::close() {
  epoch_ = nullptr;
  if (error_)
    std::rethrow_exception(error_);
}

template <class T> double Network<T>::run(const Epoch &epoch) {
  const Spread<T> &spread = epoch.spread;
  if (spread.counts && !config_.spread)
    throw std::logic_error("a net for whole mini-batches was given shards");
  layout_.lay_out(epoch.steps, epoch.offsets, spread.counts, spread.shards, spread.first, spread.own,
                  [this](std::int64_t blocks) { return groups_of(blocks); });
  prepare(layout_);
  if (spread.counts)
    prepare_spread(epoch);
  centre(epoch);
  open(epoch);
  for (int w = 0; w < config_.threads; ++w)
    deal(w, 0, false);
  Team &team = this->team();
  const std::int64_t begin = Ticks::steady();
  if (timeline_)
    timeline_->open();
  team.run([this, &epoch](int worker) {
    const NoSubnormals none;
    const Opened<T> opened(products_);
    for (std::int64_t s = 0; s < epoch.steps; ++s)
      if (!(is_spread() ? step_spread(worker, s) : step(worker, s)))
        break;
  });
  if (timeline_)
    timeline_->close();
  lasted_ = Ticks::steady() - begin;
  close();
  return total_loss_;
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
