// The gradients of the parameters over all examples of the mini-batch, and the optimizer's step.
#include <cmath>

#include "network.h"

namespace wholebatch {

// f(tile) for the parts of a layer's weight matrix that fall to this worker.
template <class T> template <class F> void Network<T>::each_tile(const Step &step, Phase phase, int layer, F f) {
  LayerState<T> &state = layers_[layer];
  if (config_.by_neuron) {
    const Tile own = tile(step, layer);
    if (own.panels.begin < own.panels.end && own.depth.begin < own.depth.end)
      f(own);
    return;
  }
  const std::int64_t stretch = state.stretch;
  const auto visit = [&](std::int64_t unit) {
    f(Tile{{unit * stretch, std::min<std::int64_t>((unit + 1) * stretch, state.depth)}, state.panels.all()});
  };
  if (is_claimed(phase, layer))
    for (std::int64_t unit; (unit = claims_.next(set_of(phase, layer), step.worker)) >= 0;)
      visit(unit);
  else
    for (std::int64_t unit = 0; unit * stretch < state.depth; ++unit)
      visit(unit);
}

// The gradient of a layer's parameters, and their update: the part that falls to this worker. In shards: the parts of
// this process's shards, which are summed and used later.
template <class T> void Network<T>::weight_gradient(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const bool grouped = is_grouped(step, layer);
  want_next_rows(step, layer);
  each_tile(step, Phase::gradient, layer, [&](const Tile &tile) {
    for (int s = 0; s < epoch_->spread.own; ++s) {
      const Shard &shard = step.blocks.shard(s);
      T *sum = state.weight.gradient.get();
      if (is_spread())
        sum = parts_in(step, epoch_->spread.sums ? s : epoch_->spread.first + s, layer);
      if (products_ && !grouped)
        add_up_rounded(step, layer, tile, shard, sum);
      else if (!grouped || config_.by_neuron)
        add_up(step, layer, tile, shard, sum);
      if (grouped)
        sum_groups(layer, tile, shard, sum);
    }
    if (!is_spread())
      finish_gradient(step, layer, tile);
  });
  if (state.norm && step.worker == 0 && !is_spread())
    finish_norm(step, layer);
}

// dW = H^T dZ for a tile over all blocks of a shard, and its update where nothing stands in its way.
template <class T> void Network<T>::add_up(const Step &step, int layer, const Tile &tile, const Shard &shard, T *sum) {
  LayerState<T> &state = layers_[layer];
  Wanted &wanted = work_[step.worker].wanted; // by the first tile that comes last
  const auto [begin, end] = tile.depth;
  const bool made_all = !config_.by_neuron || layer < hidden(); // by neuron outputs are shared out by blocks
  const std::int64_t first = shard.block, last = shard.block + shard.blocks - 1;
  each_block(step, {first, last + 1}, [&](std::int64_t b) {
    const Rows rows = step.blocks.at(b);
    const Matrix h = inputs(step, layer, b, begin, end, made_all);
    const Matrix dz = has_gradient_of_sums(step, layer)
                          ? Matrix{gradients_of(layer) + rows.first * state.stride, state.stride}
                          : gradient_of_sums(step, layer, b, tile.panels);
    if (is_grouped(step, layer))
      return add_to_part(step, layer, b, h, dz, tile.panels, wanted, tile.panels.end - tile.panels.begin);
    const int count = static_cast<int>(end - begin);
    const Matrix left = left_matrix(step.worker, rows.count, count, {h.at + begin, h.ld},
                                    tile.panels.end - tile.panels.begin, kernels_.pack_transposed);
    each_stretch(state, tile, [&](std::int64_t panel, std::int64_t at, std::int64_t) {
      const int columns = state.panels.columns(panel);
      const Matrix right =
          right_matrix(step.worker, rows.count, left, dz, state.panels.first(panel), state.panels.vectors(panel));
      if (updates_at_once(step) && b == last)
        kernels_.multiply_and_update(rows.count, count, left.at, left.ld, right.at, right.ld, columns, sum + at,
                                     b == first, step.update, state.weight.value.get() + at, state.weight.first.at(at),
                                     state.weight.second.at(at),
                                     wanted.part(panel - tile.panels.begin, tile.panels.end - tile.panels.begin));
      else
        kernels_.multiply_transposed(rows.count, count, left.at, left.ld, right.at, right.ld, columns, sum + at,
                                     b == first, {});
    });
  });
  wanted.clear();
  if (shard.blocks == 0 && !is_grouped(step, layer))
    each_stretch(state, tile,
                 [&](std::int64_t, std::int64_t at, std::int64_t count) { std::fill_n(sum + at, count, T(0)); });
}

// The sum of a shard's groups of blocks, for a tile.
template <class T> void Network<T>::sum_groups(int layer, const Tile &tile, const Shard &shard, T *sum) {
  const T *groups = parts_[layer % 2].get() + shard.group * part_size_;
  each_stretch(layers_[layer], tile, [&](std::int64_t, std::int64_t at, std::int64_t count) {
    if (shard.groups > 0)
      kernels_.sum_parts(count, static_cast<int>(shard.groups), groups + at, part_size_, sum + at);
    else
      std::fill_n(sum + at, count, T(0));
  });
}

// A layer's gradient from its parts, and the update: what falls to this worker.
template <class T> void Network<T>::reduce(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const Spread<T> &spread = epoch_->spread;
  const T *from = spread.sums ? spread.sums + part_of(layer).first : parts_in(step, 0, layer);
  const int parts = spread.sums ? 1 : spread.shards;
  constexpr std::int64_t rows = 96; // of a panel, whose sum is in the first-level cache when it is used
  each_tile(step, Phase::reduction, layer, [&](const Tile &tile) {
    for (std::int64_t panel = tile.panels.begin; panel < tile.panels.end; ++panel)
      for (std::int64_t k = tile.depth.begin; k < tile.depth.end; k += rows) {
        const Tile piece{{k, std::min(k + rows, tile.depth.end)}, {panel, panel + 1}};
        each_stretch(state, piece, [&](std::int64_t, std::int64_t at, std::int64_t count) {
          kernels_.sum_parts(count, parts, from + at, part_size(), state.weight.gradient.get() + at);
        });
        finish_gradient(step, layer, piece);
      }
  });
  if (state.norm && step.worker == 0)
    finish_norm(step, layer);
}

// Adds a block's part of some panels of dW to the sum of its group.
template <class T>
void Network<T>::add_to_part(const Step &step, int layer, std::int64_t block, const Matrix &h, const Matrix &dz,
                             Range panels, const Wanted &wanted, std::int64_t parts) {
  if (products_)
    return add_rounded_to_part(step, layer, block, h, dz, panels);
  const LayerState<T> &state = layers_[layer];
  const std::int64_t group = step.blocks.group_of(block);
  const bool first = step.blocks.group_begin(group) == block;
  T *part = parts_[layer % 2].get() + group * part_size_;
  const int rows = step.blocks.at(block).count;
  const Matrix left =
      left_matrix(step.worker, rows, state.depth, h, panels.end - panels.begin, kernels_.pack_transposed);
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const std::int64_t column = state.panels.first(p);
    const Matrix right = right_matrix(step.worker, rows, left, dz, column, state.panels.vectors(p));
    kernels_.multiply_transposed(rows, state.depth, left.at, left.ld, right.at, right.ld, state.panels.columns(p),
                                 part + column * state.depth, first, wanted.part(p - panels.begin, parts));
  }
}

// The squares of each row of a tile, by vector and row: sums in a fixed order, whoever asks and however wide his panels
// are.
template <class T>
void Network<T>::square_rows(const LayerState<T> &state, const Tile &tile, const Buffer<T> &of,
                             Buffer<double> &squares) {
  each_stretch(state, tile, [&](std::int64_t panel, std::int64_t at, std::int64_t count) {
    const std::int64_t wide = state.panels.wide(panel), width = kernels_.width;
    for (std::int64_t v = 0; v < wide; v += width) {
      double *sum = squares.get() + (state.panels.first(panel) + v) / width * state.depth + tile.depth.begin;
      for (std::int64_t i = at + v; i < at + count; i += wide, ++sum) {
        *sum = 0;
        for (std::int64_t c = i; c < i + width; ++c)
          *sum += static_cast<double>(of[c]) * static_cast<double>(of[c]);
      }
    }
  });
}

// What the loss adds (alpha), and the update, unless it must wait for the gradient's norm.
template <class T> void Network<T>::finish_gradient(const Step &step, int layer, const Tile &tile) {
  LayerState<T> &state = layers_[layer];
  if (config_.alpha > 0) {
    Tile weights = tile; // without the bias
    weights.depth.end = std::min<std::int64_t>(tile.depth.end, state.inputs);
    const T share = static_cast<T>(step.penalty);
    each_stretch(state, weights, [&](std::int64_t, std::int64_t at, std::int64_t count) {
      for (std::int64_t i = at; i < at + count; ++i)
        state.weight.gradient[i] += share * state.weight.value[i];
    });
    square_rows(state, weights, state.weight.value, state.weight_squares);
  }
  if (!step.updates)
    return;
  if (config_.max_grad_norm > 0)
    square_rows(state, tile, state.weight.gradient, state.gradient_squares);
  else
    update_layer(step, layer, tile, updates_at_once(step) && !is_grouped(step, layer));
}

template <class T> void Network<T>::update_layer(const Step &step, int layer, const Tile &tile, bool weights_are_done) {
  LayerState<T> &state = layers_[layer];
  Parameter<T> &p = state.weight;
  each_stretch(state, tile, [&](std::int64_t panel, std::int64_t at, std::int64_t count) {
    if (!weights_are_done)
      kernels_.update(step.update, count, p.value.get() + at, p.gradient.get() + at, p.first.at(at), p.second.at(at));
    if (config_.optimizer_eps == 0) { // Adam's 0 / 0 must not reach the padding
      const std::int64_t wide = state.panels.wide(panel);
      for (std::int64_t i = 0; i < count; i += wide)
        for (std::int64_t c = state.panels.columns(panel); c < wide; ++c)
          state.weight.value[at + i + c] = 0;
    }
    if (layer > 0 && !products_)
      transpose(layer, panel, {tile.depth.begin, std::min<std::int64_t>(tile.depth.end, state.inputs)});
  });
  if (products_)
    round_weights(layer, tile);
}

// The norm's own parameters are few: worker 0 has them to itself.
template <class T> void Network<T>::finish_norm(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const auto &v = work_[0].layers[layer];
  const double *sum_g = is_spread() ? state.shared.whole_sums.get() : v.sum_g,
               *sum_gx = is_spread() ? sum_g + state.padded : v.sum_gx;
  for (int c = 0; c < state.padded; ++c) {
    state.gamma.gradient[c] = static_cast<T>(sum_gx[c]);
    state.beta.gradient[c] = state.shift ? static_cast<T>(sum_g[c]) : T(0);
  }
  if (step.updates && config_.max_grad_norm == 0)
    update_norm(step, layer);
}

template <class T> void Network<T>::update_norm(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  for (Parameter<T> *p : {&state.gamma, state.shift ? &state.beta : nullptr})
    if (p)
      kernels_.update(step.update, state.outputs, p->value.get(), p->gradient.get(), p->first.get(), p->second.get());
}

// torch.nn.utils.clip_grad_norm_: g *= min(1, max_norm / (norm + 1e-6)), with the norm over all parameters.
template <class T> void Network<T>::clip_and_update(const Step &step) {
  double squares = 0;
  for (const LayerState<T> &state : layers_) {
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(state.gradient_squares.size()); ++i)
      squares += state.gradient_squares[i];
    for (int c = 0; state.norm && c < state.outputs; ++c)
      squares += static_cast<double>(state.gamma.gradient[c]) * static_cast<double>(state.gamma.gradient[c]) +
                 static_cast<double>(state.beta.gradient[c]) * static_cast<double>(state.beta.gradient[c]);
  }
  const T factor = static_cast<T>(std::min(1.0, config_.max_grad_norm / (std::sqrt(squares) + 1e-6)));
  computed(step, Stage::update, -1);
  if (meet(step, Stage::clip, -1)) // worker 0 scales the norms' gradients next, and everyone has to have read them
    return;
  for (int l = 0; l <= hidden(); ++l) {
    LayerState<T> &state = layers_[l];
    const Tile tile = this->tile(step, l);
    each_stretch(state, tile, [&](std::int64_t, std::int64_t at, std::int64_t count) {
      for (std::int64_t i = at; i < at + count; ++i)
        state.weight.gradient[i] *= factor;
    });
    for (int c = 0; state.norm && step.worker == 0 && c < state.outputs; ++c) {
      state.gamma.gradient[c] *= factor;
      state.beta.gradient[c] *= factor;
    }
    update_layer(step, l, tile, false);
    if (state.norm && step.worker == 0)
      update_norm(step, l);
  }
}

template <class T> void Network<T>::add_penalty(const Step &step) {
  if (step.worker != 0 || config_.alpha == 0)
    return;
  double squares = 0;
  for (const LayerState<T> &state : layers_)
    for (std::int64_t vector = 0; vector < state.padded / kernels_.width; ++vector)
      for (int k = 0; k < state.inputs; ++k)
        squares += state.weight_squares[vector * state.depth + k];
  const double penalty =
      0.5 * step.penalty * squares * static_cast<double>(step.whole); // totals count each example once
  total_loss_ += penalty;
  total_penalty_ += penalty;
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
