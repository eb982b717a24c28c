// The step's matrix products, by the kernels of its own number type or with operands that are rounded (products.h).
//
// What is rounded, is rounded once for all panels that it is multiplied by: a block of h or dZ where it is used,
// weights where they are updated. On the way down each block of dZ is also kept as the right operand of dW = H^T dZ,
// which is formed a meeting later; where it is summed in groups of blocks, it is used at once. Biases and their
// gradients are sums, and no products: nothing of them is rounded.
#include <algorithm>

#include "network.h"

namespace wholebatch {

namespace {

constexpr std::int64_t block_steps = Blocks::most / Tiles::inner; // at most, of a block's rows

constexpr std::int64_t least_panels = 16; // that a left operand is packed for

// How many blocks of so many columns of h are multiplied at a time: the sums stay in registers for so long, and h in
// the second-level cache.
constexpr std::int64_t most_turned = std::int64_t{1} << 18; // elements
std::int64_t blocks_at_once(std::int64_t inputs) {
  const std::int64_t padded = (inputs + Tiles::outer - 1) / Tiles::outer * Tiles::outer;
  return std::clamp<std::int64_t>(most_turned / (padded * Blocks::most), 1, 4);
}

} // namespace

// Elements of an operand: all of its parts.
template <class T> std::int64_t Network<T>::rounded_size(std::int64_t outer, std::int64_t steps) const {
  return (outer + Tiles::outer - 1) / Tiles::outer * steps * Tiles::size * rounded_parts_;
}

// Steps of a mini-batch's rows for which a layer's dL/dZ is kept: of those mini-batches in which it is.
template <class T> std::int64_t Network<T>::steps_kept(const LayerState<T> &layer) const {
  return block_steps * (summed_in_groups(layer) ? layout_.most_single_blocks : layout_.most_blocks);
}

template <class T> void Network<T>::prepare_products() {
  ones_.resize(Blocks::most);
  std::fill_n(ones_.get(), Blocks::most, T(1));
  for (int l = 0; l <= hidden(); ++l) {
    const LayerState<T> &layer = layers_[l];
    const std::int64_t kept = steps_kept(layer);
    rounded_gradients_[l % 2].resize(rounded_size(layer.padded, kept));
    if (layer.bias)
      bias_sums_[l % 2].resize(kept / block_steps * layer.padded);
    for (Workspace<T> &work : work_) {
      const std::int64_t turned = std::max(rounded_size(layer.inputs, block_steps), most_turned * rounded_parts_),
                         rows = rounded_size(Blocks::most, steps_of(std::max(layer.inputs, layer.outputs)));
      work.left.resize(std::max(turned, rows));
      if (summed_in_groups(layer) && layout_.most_groups > 0)
        work.right.resize(rounded_size(layer.padded, block_steps));
    }
  }
}

// A block's matrix, for as many panels as it is multiplied by, or its transpose is: packed where that pays, which
// changes no bit. `pack` is the kernels' `pack` or `pack_transposed`.
template <class T>
typename Network<T>::Matrix Network<T>::left_matrix(int worker, int rows, int columns, const Matrix &matrix,
                                                    std::int64_t panels, Pack pack) {
  if (panels < least_panels)
    return matrix;
  T *packed = work_[worker].packed.get();
  pack(rows, columns, matrix.at, matrix.ld, packed);
  return {packed, 0};
}

// A panel of a block's dz, from the column `first` on, that `left` is multiplied by: packed where `left` is.
template <class T>
typename Network<T>::Matrix Network<T>::right_matrix(int worker, int rows, const Matrix &left, const Matrix &dz,
                                                     std::int64_t first, int vectors) {
  T *at = dz.at + first;
  if (left.ld > 0)
    return {at, dz.ld};
  T *packed = work_[worker].panel.get();
  kernels_.pack_panel(rows, at, dz.ld, vectors, packed);
  return {packed, vectors * kernels_.width};
}

// A block of h or dZ for all products on the way up or down that it is the left operand of: until the next one is made.
template <class T>
typename Network<T>::Left Network<T>::left_operand(int worker, int rows, int layer, Way way, const Matrix &matrix,
                                                   std::int64_t panels) {
  const LayerState<T> &state = layers_[layer];
  const bool forward = way == Way::forward;
  if (!products_)
    return {left_matrix(worker, rows, forward ? state.depth : state.outputs, matrix, panels, kernels_.pack), {}};
  const int depth = forward ? state.inputs : state.outputs;
  const Tiles tiles = tiles_of(work_[worker].left, steps_of(depth));
  products_->left_by_columns(rows, depth, steps_of(depth), matrix.at, matrix.ld, tiles);
  return {matrix, tiles};
}

// One panel of Z = H W, or of dH = dZ W^T.
template <class T>
void Network<T>::multiply(const Left &left, int rows, int layer, Way way, std::int64_t panel, T *out, std::int64_t ld,
                          const Ahead &ahead) {
  LayerState<T> &state = layers_[layer];
  const bool forward = way == Way::forward;
  const Panels &panels = forward ? state.panels : layers_[layer - 1].panels;
  const int inner = forward ? state.inputs : state.outputs;
  const std::int64_t first = panels.first(panel);
  if (!products_) {
    const int depth = forward ? state.depth : state.outputs;
    const T *weights = forward ? state.weight.value.get() : state.back.get();
    return kernels_.multiply(rows, depth, left.matrix.at, left.matrix.ld, weights + first * depth,
                             panels.columns(panel), out, ld, ahead);
  }
  const int vectors = panels.vectors(panel);
  const Tiles weights = tiles_of(forward ? state.rounded : state.rounded_back, steps_of(inner));
  const T *bias = forward && state.bias
                      ? state.weight.value.get() + first * state.depth + state.inputs * vectors * kernels_.width
                      : nullptr;
  products_->multiply(rows, vectors, steps_of(inner), left.tiles, weights.from(first / Tiles::outer, 0), bias, 0, out,
                      ld);
}

// Both operands that a tile of a layer's weights is part of. The tile begins with a whole step, and ends with one or
// with the inputs.
template <class T> void Network<T>::round_weights(int layer, const Tile &tile) {
  LayerState<T> &state = layers_[layer];
  const int begin = static_cast<int>(tile.depth.begin),
            rows = static_cast<int>(std::min<std::int64_t>(tile.depth.end, state.inputs)) - begin;
  const Tiles forward = tiles_of(state.rounded, steps_of(state.inputs)),
              back = tiles_of(state.rounded_back, steps_of(state.outputs));
  if (rows <= 0)
    return;
  for (std::int64_t p = tile.panels.begin; p < tile.panels.end; ++p) {
    const std::int64_t first = state.panels.first(p);
    const int wide = static_cast<int>(state.panels.wide(p));
    const T *weights = state.weight.value.get() + first * state.depth + static_cast<std::int64_t>(begin) * wide;
    products_->right_by_rows(wide, rows, steps_of(rows), weights, wide,
                             forward.from(first / Tiles::outer, begin / Tiles::inner));
    if (layer > 0)
      products_->right_by_columns(rows, wide, 1, weights, wide, back.from(begin / Tiles::outer, first / Tiles::inner));
  }
}

// Where a block's rows are among the steps of its mini-batch. Each block has whole steps of its own, and all of a shard
// as many.
template <class T> typename Network<T>::Run Network<T>::run_of(const Step &step, std::int64_t block) const {
  const Shard &shard = step.blocks.shard_of(block);
  const std::int64_t most = (shard.rows + shard.blocks - 1) / shard.blocks, each = steps_of(static_cast<int>(most));
  return {block_steps * shard.block + each * (block - shard.block), each};
}

// Keeps some panels of a block's dL/dZ as a right operand, and their sums over its rows, which are the bias's gradient.
template <class T>
void Network<T>::keep_gradient(const Step &step, int layer, std::int64_t block, const Matrix &dz, Range panels) {
  const LayerState<T> &state = layers_[layer];
  const int rows = step.blocks.at(block).count;
  const std::int64_t begin = state.panels.first(panels.begin), end = state.panels.first(panels.end);
  const Run run = run_of(step, block);
  const Tiles kept = tiles_of(rounded_gradients_[layer % 2], steps_kept(state));
  products_->right_by_rows(static_cast<int>(end - begin), rows, static_cast<int>(run.count), dz.at + begin, dz.ld,
                           kept.from(begin / Tiles::outer, run.begin));
  for (std::int64_t p = panels.begin; state.bias && p < panels.end; ++p)
    kernels_.multiply_transposed(rows, 1, ones_.get(), 1, dz.at + state.panels.first(p), dz.ld, state.panels.columns(p),
                                 bias_sums_[layer % 2].get() + block * state.padded + state.panels.first(p), true, {});
}

// Adds a block's part of some panels of dW to the sum of its group.
template <class T>
void Network<T>::add_rounded_to_part(const Step &step, int layer, std::int64_t block, const Matrix &h, const Matrix &dz,
                                     Range panels) {
  const LayerState<T> &state = layers_[layer];
  Workspace<T> &work = work_[step.worker];
  const std::int64_t group = step.blocks.group_of(block);
  const bool first = step.blocks.group_begin(group) == block;
  const int rows = step.blocks.at(block).count, steps = steps_of(rows);
  const Tiles left = tiles_of(work.left, steps), right = tiles_of(work.right, steps);
  const std::int64_t begin = state.panels.first(panels.begin), end = state.panels.first(panels.end);
  products_->left_by_rows(state.inputs, rows, steps, h.at, h.ld, left);
  products_->right_by_rows(static_cast<int>(end - begin), rows, steps, dz.at + begin, dz.ld,
                           right.from(begin / Tiles::outer, 0));
  T *part = parts_[layer % 2].get() + group * part_size_;
  for (std::int64_t p = panels.begin; p < panels.end; ++p) {
    const std::int64_t column = state.panels.first(p), wide = state.panels.wide(p);
    T *sum = part + column * state.depth;
    products_->multiply(state.inputs, state.panels.vectors(p), steps, left, right.from(column / Tiles::outer, 0),
                        first ? nullptr : sum, wide, sum, wide);
    if (state.bias)
      kernels_.multiply_transposed(rows, 1, ones_.get(), 1, dz.at + column, dz.ld, state.panels.columns(p),
                                   sum + static_cast<std::int64_t>(state.inputs) * wide, first, {});
  }
}

// dW = H^T dZ for a tile over all blocks of a shard, some blocks at a time, and its update where nothing stands in its
// way.
template <class T>
void Network<T>::add_up_rounded(const Step &step, int layer, const Tile &tile, const Shard &shard, T *sum) {
  LayerState<T> &state = layers_[layer];
  const std::int64_t begin = tile.depth.begin, end = std::min<std::int64_t>(tile.depth.end, state.inputs);
  const bool made_all = !config_.by_neuron || layer<hidden(), has_bias = tile.depth.end> state.inputs;
  const bool updates = updates_at_once(step);
  const int inputs = static_cast<int>(end - begin);
  const Tiles kept = tiles_of(rounded_gradients_[layer % 2], steps_kept(state));
  const auto update = [&](std::int64_t at, std::int64_t count, const T *gradient) {
    kernels_.update(step.update, count, state.weight.value.get() + at, gradient, state.weight.first.at(at),
                    state.weight.second.at(at));
  };
  const std::int64_t last = shard.block + shard.blocks, at_once = blocks_at_once(std::max(1, inputs));
  for (std::int64_t b = shard.block; b < last && inputs > 0; b += at_once) { // else the tile is the bias
    const std::int64_t stop = std::min(b + at_once, last);
    const Run first_run = run_of(step, b);
    const std::int64_t each = first_run.count;
    const int steps = static_cast<int>(each * (stop - b));
    const Tiles left = tiles_of(work_[step.worker].left, steps);
    each_block(step, {b, stop}, [&](std::int64_t block) {
      const int rows = step.blocks.at(block).count;
      const Matrix h = this->inputs(step, layer, block, begin, end, made_all);
      products_->left_by_rows(inputs, rows, static_cast<int>(each), h.at + begin, h.ld,
                              left.from(0, each * (block - b)));
      if (config_.by_neuron)
        keep_gradient(step, layer, block,
                      has_gradient_of_sums(step, layer)
                          ? Matrix{gradients_of(layer) + step.blocks.at(block).first * state.stride, state.stride}
                          : gradient_of_sums(step, layer, block, tile.panels),
                      tile.panels);
    });
    alignas(64) T fresh[Tiles::inner * Tiles::inner];
    each_stretch(state, tile, [&](std::int64_t panel, std::int64_t at, std::int64_t) {
      const int vectors = state.panels.vectors(panel);
      const std::int64_t wide = state.panels.wide(panel);
      const Tiles right = kept.from(state.panels.first(panel) / Tiles::outer, first_run.begin);
      const auto add = [&](std::int64_t row, int rows, T *to) {
        products_->multiply(rows, vectors, steps, left.from(row / Tiles::outer, 0), right,
                            b == shard.block ? nullptr : sum + at + row * wide, wide, to, wide);
      };
      if (!updates || stop < last)
        return add(0, inputs, sum + at);
      for (int row = 0; row < inputs; row += Tiles::inner) {
        const int rows = std::min(Tiles::inner, inputs - row);
        add(row, rows, fresh);
        update(at + row * wide, rows * wide, fresh);
      }
    });
  }
  if (shard.blocks == 0)
    each_stretch(state, tile,
                 [&](std::int64_t, std::int64_t at, std::int64_t count) { std::fill_n(sum + at, count, T(0)); });
  else if (has_bias)
    each_stretch(state, tile, [&](std::int64_t panel, std::int64_t at, std::int64_t) {
      const std::int64_t wide = state.panels.wide(panel), row = at + inputs * wide;
      kernels_.sum_parts(wide, static_cast<int>(shard.blocks),
                         bias_sums_[layer % 2].get() + shard.block * state.padded + state.panels.first(panel),
                         state.padded, sum + row);
      if (updates)
        update(row, wide, sum + row);
    });
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
