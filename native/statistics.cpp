// What is known of a whole mini-batch once its blocks are: counts, moments and what normalises, sums of gradients and
// what they pass on, the loss; and where the inputs of an epoch lie.
#include <algorithm>
#include <cmath>

#include "network.h"

namespace wholebatch {

// Inputs far from zero (a year, a pressure) cost the first product its digits: at mean 1e4 and std 1 float32 sums are
// off by 1e-3. Under batch norm the mean goes away again, so a column that lies far from zero, judged by the epoch's
// first rows (in shards, those of the first), is moved there.
template <class T> void Network<T>::centre(const Epoch &epoch) {
  centred_ = false;
  const bool cancels = hidden() > 0 && config_.norm == Norm::batch && !config_.after;
  if (!cancels || epoch.spread.late) // what others found out a step before stays where it was
    return;
  const int columns = config_.sizes[0];
  std::fill_n(centre_.get(), columns, T(0));
  if (epoch.spread.first == 0)
    choose_centre(epoch);
  if (Exchange *whole = epoch.spread.whole) {
    const std::vector<double> own(centre_.get(), centre_.get() + columns);
    whole->begin(Exchange::At::inputs, 0, own.data(), columns);
    const double *first = whole->finish() + 1; // rank 0 has the first shard
    std::transform(first, first + columns, centre_.get(), [](double value) { return static_cast<T>(value); });
  }
  centred_ = std::any_of(centre_.get(), centre_.get() + columns, [](T value) { return value != 0; });
}

template <class T> void Network<T>::choose_centre(const Epoch &epoch) {
  constexpr std::int64_t most = 64;
  const int columns = config_.sizes[0];
  std::vector<std::int64_t> first;
  for (std::int64_t s = 0; s < epoch.steps && static_cast<std::int64_t>(first.size()) < most; ++s) {
    const std::int64_t *begin = epoch.order + epoch.offsets[s];
    first.insert(first.end(), begin, begin + layout_.of(s).shard(0).rows);
  }
  const std::int64_t rows = std::min(most, static_cast<std::int64_t>(first.size()));
  T *sample = work_[0].h.get();
  gather(epoch.table, first.data(), static_cast<int>(rows), 0, columns, false, sample, ldh_);
  std::vector<double> mean(columns), m2(columns);
  for (std::int64_t r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      const double value = sample[r * ldh_ + c], delta = value - mean[c];
      mean[c] += delta * (1 / static_cast<double>(r + 1));
      m2[c] += delta * (value - mean[c]);
    }
  for (int c = 0; c < columns; ++c) {
    const bool far = mean[c] * mean[c] * static_cast<double>(rows) > 16 * m2[c];
    centre_[c] = far ? static_cast<T>(mean[c]) : T(0);
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

// The means of the first layer's sums as they would have been, had nothing been taken off the inputs. Along the panels'
// rows: down each column, a sum at a time, it took a fifth of a small step.
template <class T> void Network<T>::add_centre(const LayerState<T> &state, const double *mean) {
  std::copy_n(mean, state.padded, centre_sums_.get());
  for (std::int64_t p = 0; p < state.panels.count(); ++p) {
    double *sums = centre_sums_.get() + state.panels.first(p);
    const std::int64_t wide = state.panels.wide(p);
    const T *weights = state.weight.value.get() + state.panels.first(p) * state.depth;
    for (int k = 0; k < state.inputs; ++k) {
      const auto centre = static_cast<double>(centre_[k]);
      for (std::int64_t c = 0; c < wide; ++c)
        sums[c] += static_cast<double>(weights[k * wide + c]) * centre;
    }
  }
}

// From the blocks' moments to what normalises: every worker for itself, so that one meeting is enough. In shards,
// worker 0 has merged them.
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
  const double *mean = state.means.get(), *m2 = state.m2s.get();
  double whole = weighs_moments() ? step.examples : static_cast<double>(step.rows);
  if (is_spread()) {
    mean = state.shared.moments.get();
    m2 = mean + columns;
    whole = state.shared.count;
  } else if (step.blocks.count > 1) {
    merge_blocks(
        0, step.blocks.count, [&](std::int64_t b) { return count_of(step, step.blocks.at(b)); }, mean, m2, columns,
        v.merged_mean.get(), v.merged_m2.get());
    mean = v.merged_mean.get();
    m2 = v.merged_m2.get();
  }
  v.count = whole > 0 ? whole : 1;
  kernels_.statistics(columns, mean, m2, 1 / v.count, static_cast<T>(config_.eps), v.gamma.get(), v.mean.get(),
                      v.rstd.get(), v.scale.get());
  if (step.worker == 0 && (!is_spread() || is_whole_at_layers()))
    track(step, layer, mean, m2, whole);
}

// Moves the running statistics by the moments of the whole mini-batch.
template <class T>
void Network<T>::track(const Step &step, int layer, const double *mean, const double *m2, double count) {
  if (!epoch_->track || count == 0)
    return;
  LayerState<T> &state = layers_[layer];
  state.tracked += 1;
  const double factor = config_.momentum < 0 ? 1 / state.tracked : config_.momentum;
  // Weights that count examples leave count - 1 of them; smaller ones (say, with a sum of 1) leave the rows less one.
  const double free = std::max(count, static_cast<double>(step.counted));
  const double unbiased = free == count ? 1 / std::max(1.0, count - 1) : free / (count * std::max(1.0, free - 1));
  if (layer == 0 && centred_) {
    add_centre(state, mean);
    mean = centre_sums_.get();
  }
  for (int c = 0; c < state.outputs; ++c) {
    state.running_mean[c] += factor * (mean[c] - state.running_mean[c]);
    state.running_var[c] += factor * (m2[c] * unbiased - state.running_var[c]);
  }
}

template <class T> void Network<T>::finish_sums(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  if (!state.norm || (config_.norm != Norm::batch && step.worker != 0))
    return;
  auto &v = work_[step.worker].layers[layer];
  v.sum_g = state.sum_gs.get();
  v.sum_gx = state.sum_gxs.get();
  if (is_spread()) {
    v.sum_g = state.shared.sums.get();
    v.sum_gx = v.sum_g + state.padded;
  } else if (step.blocks.count > 1) {
    add_rows(0, step.blocks.count, v.sum_g, state.padded, v.merged_g.get());
    add_rows(0, step.blocks.count, v.sum_gx, state.padded, v.merged_gx.get());
    v.sum_g = v.merged_g.get();
    v.sum_gx = v.merged_gx.get();
  }
  if (config_.norm == Norm::batch)
    kernels_.gradient_terms(state.padded, v.sum_g, v.sum_gx, 1 / v.count, v.rstd.get(), v.scale.get(), v.k1.get(),
                            v.k2.get());
}

template <class T> double Network<T>::loss_of(const Shard &shard) const {
  double loss = 0;
  for (std::int64_t b = shard.block; b < shard.block + shard.blocks; ++b)
    loss += loss_blocks_[b];
  return loss;
}

// Worker 0 adds up the loss; where it is not finite it looks for the first layer with such a value, and everyone leaves
// at the next meeting.
template <class T> void Network<T>::finish_loss(const Step &step, double loss) {
  total_loss_ += loss * static_cast<double>(step.whole);
  examples_ += step.whole;
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
