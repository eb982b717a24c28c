// What a worker's products ask memory for while they are computed: what the next block is made from.
#include "network.h"

namespace wholebatch {

// What a block of a layer's inputs is made from shall be asked for.
template <class T> void Network<T>::want_inputs(Wanted &wanted, int layer, const std::int64_t *order, Rows rows) const {
  const std::int64_t columns = layers_[layer].inputs;
  if (layer > 0) {
    const LayerState<T> &below = layers_[layer - 1];
    wanted.add(below.z.get() + rows.first * below.stride, rows.count * below.stride * sizeof(T));
  } else if (epoch_->table.dense) {
    for (std::int64_t r = rows.first; r < rows.first + rows.count; ++r)
      wanted.add(epoch_->table.dense + order[r] * columns, columns * sizeof(T));
  }
}

// While a block is multiplied on the way up: what the next one's inputs are made from.
template <class T> const Wanted &Network<T>::want_up(const Step &step, int layer, std::int64_t block) {
  Wanted &wanted = work_[step.worker].wanted;
  wanted.clear();
  if (block + 1 < step.blocks.count && !products_)
    want_inputs(wanted, layer, step.order, step.blocks.at(block + 1));
  wanted.close();
  return wanted;
}

// And on the way down: its gradient, the layer's sums and its inputs. from_outputs: the gradient is made on the way.
template <class T>
const Wanted &Network<T>::want_down(const Step &step, int layer, std::int64_t block, bool from_outputs) {
  const LayerState<T> &state = layers_[layer];
  Wanted &wanted = work_[step.worker].wanted;
  wanted.clear();
  if (block + 1 < step.blocks.count && !products_) {
    const Rows next = step.blocks.at(block + 1);
    const std::int64_t at = next.first * state.stride, bytes = next.count * state.stride * sizeof(T);
    if (!from_outputs)
      wanted.add(gradients_of(layer) + at, bytes);
    if (layer < hidden())
      wanted.add(state.z.get() + at, bytes);
    if (layer > 0 || is_grouped(step, layer))
      want_inputs(wanted, layer, step.order, next);
  }
  wanted.close();
  return wanted;
}

// While the first layer's weights are updated: the rows of the next mini-batch that this worker multiplies by them,
// where they are too many for the loads to wait for as they are gathered, and so few that they stay in cache until
// then. Other products of weight gradients ask for nothing.
template <class T> void Network<T>::want_next_rows(const Step &step, int layer) {
  Wanted &wanted = work_[step.worker].wanted;
  wanted.clear();
  const std::int64_t next = step.index + 1;
  if (layer > 0 || products_ || is_grouped(step, 0) || !updates_at_once(step) || next >= epoch_->steps)
    return;
  const Blocks blocks = layout_.of(next);
  const std::int64_t bytes = blocks.rows * layers_[0].inputs * static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t least = std::int64_t{1} << 15, most = std::int64_t{1} << 18;
  if (bytes < least || bytes > most)
    return;
  const std::int64_t workers = config_.by_neuron ? 1 : config_.threads, worker = config_.by_neuron ? 0 : step.worker;
  for (std::int64_t b = blocks.count * worker / workers; b < blocks.count * (worker + 1) / workers; ++b)
    want_inputs(wanted, 0, epoch_->order + epoch_->offsets[next], blocks.at(b));
  wanted.close();
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
