// One step of a mini-batch in shards, as every worker of one rank lives it. `|` is a meeting of this rank's workers;
// `>` and `<` are worker 0's exchange with the other ranks: what it posts, and what it waits for.
//
//   1  forward   Z0 = X W0, moments        | > moments <                               |
//                Z1 = h(Z0) W1, moments    | > moments <                               |
//   2  output    o = h(Z1) W2, loss, dL/do
//   3  backward  g1 = dL/do W2^T, sums     | > sums, loss   parts of dW2             < |
//                g0 = dZ1 W1^T, sums       | > sums         parts of dW1             < |
//   4  rest      parts of dW0              | > step         dW2 = its parts, update  < |  dW1, dW0 the same
//
// Each shard has a part of each weight gradient, and all ranks see all parts. One that was formed before a rank posts
// is complete when everyone has posted: so dW2, formed beside the sums of g1, may be added up once those of g0 are
// there, and every rank does it for itself, shard after shard. Nobody overwrites a part that another still reads:
// before it is formed again, everyone has posted the next step's moments. Where ranks do not meet at layers (other
// norms; each rank's own statistics), all parts wait for the end of the step, and two sets of them take turns.
//
// A process that has all shards does the same, and posts nothing.
#include <cmath>

#include "merging.h"
#include "network.h"

namespace wholebatch {

template <class T> bool Network<T>::step_spread(int worker, std::int64_t index) {
  if (timeline_)
    timeline_->lane(worker).begin(index);
  const Step step = begin(worker, index);
  const int last = hidden();
  const bool overlap = epoch_->spread.overlap, early = overlap && is_whole_at_layers();
  const int lag = epoch_->spread.sums ? 3 : 2; // meetings after which a layer's parts are there
  int added = last + 1;                        // layers from here on have their gradient
  const auto add_up_from = [&](int layer) {
    for (; added > layer; computed(step, Stage::update, added))
      reduce(step, --added);
  };
  poll(worker);
  deal(worker, index, true);
  if (worker == 0)
    sent_ = summed_ = last + 1;

  if (!up(step)) // 1, 2
    return false;
  for (int l = last; l > 0; --l) { // 3
    down(step, l);
    if (meet(step, Stage::backward, l - 1))
      return false;
    if (overlap)
      send_parts(step, l + 1);
    begin_sums(step, l - 1);
    if (!overlap) {
      end_sums(step, l - 1);
      if (meet(step, Stage::backward, l - 1))
        return false;
    }
    weight_gradient(step, l);
    computed(step, Stage::update, l);
    if (early)
      add_up_from(l + lag);
    if (overlap) {
      end_sums(step, l - 1);
      await_parts(step, l + 2);
      if (meet(step, Stage::backward, l - 1))
        return false;
    }
    finish_sums(step, l - 1);
  }
  if (!form_first_gradient(step)) // 4
    return false;
  weight_gradient(step, 0);
  computed(step, Stage::update, 0);
  if (meet(step, Stage::exchange, -1))
    return false;
  send_parts(step, 0);
  begin_step(step);
  if (early)
    add_up_from(lag);
  end_step(step);
  await_parts(step, 0);
  if (meet(step, Stage::exchange, -1))
    return false;
  add_up_from(0);
  return end_update(step);
}

// What worker 0 does for all, unless the epoch is ending. What that throws ends it: everyone leaves at the next
// meeting.
template <class T>
template <class F>
void Network<T>::share(const Step &step, Doing doing, Stage stage, int layer, F f) {
  if (step.worker != 0 || error_)
    return;
  const std::int64_t begin = Ticks::steady();
  try {
    f();
  } catch (...) {
    error_ = std::current_exception();
    team_->ask_to_stop();
  }
  (doing == Doing::ranks ? awaited_ : exchanged_) += Ticks::steady() - begin;
  if (timeline_)
    timeline_->lane(0).at(stage, layer)->mark(doing);
}

// Rows of all shards that meet, one behind the other: worker 0 has posted its own, and waits here for the others'.
template <class T>
const double *Network<T>::rows_of(const Step &step, Exchange *exchange, Stage stage, int layer, const double *own,
                                  std::int64_t width, int shards) {
  if (!exchange)
    return own;
  const double *gathered = nullptr;
  share(step, Doing::ranks, stage, layer, [&] { gathered = exchange->finish(); });
  if (!gathered)
    return own;
  const std::int64_t each = width * epoch_->spread.own;
  double *rows = rows_.get();
  for (int first = 0; first < shards; first += epoch_->spread.own, gathered += 1 + each, rows += each)
    std::copy_n(gathered + 1, each, rows);
  return rows_.get();
}

template <class T> void Network<T>::share_moments(const Step &step, int layer) {
  if (step.worker != 0)
    return;
  LayerState<T> &state = layers_[layer];
  Shared &shared = state.shared;
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t columns = state.padded, width = 1 + 2 * columns;
  double *own = shared.own_moments.get();
  share(step, Doing::exchange, Stage::forward, layer, [&] {
    for (int s = 0; s < spread.own; ++s) {
      const Shard &shard = step.blocks.shard(s);
      double *row = own + s * width;
      if (shard.blocks == 0)
        std::fill_n(row, width, 0.0);
      else
        row[0] = merge_blocks(
            shard.block, shard.block + shard.blocks, [&](std::int64_t b) { return count_of(step, step.blocks.at(b)); },
            state.means.get(), state.m2s.get(), columns, row + 1, row + 1 + columns);
    }
    if (spread.layers)
      spread.layers->begin(Exchange::At::forward, layer, own, spread.own * width);
  });
  const double *rows = rows_of(step, spread.layers, Stage::forward, layer, own, width, spread.near);
  share(step, Doing::exchange, Stage::forward, layer, [&] {
    int shards = spread.near;
    if (spread.late) { // the others' of the step before
      std::copy_n(own, spread.own * width, shared.before.get() + spread.first * width);
      rows = shared.before.get();
      shards = spread.shards;
    }
    double *mean = shared.moments.get();
    shared.count = merge_moments(rows, shards, columns, mean, mean + columns);
  });
}

// A shard's row of sums: those of g and g x̂, and its loss.
template <class T> void Network<T>::begin_sums(const Step &step, int layer) {
  LayerState<T> &state = layers_[layer];
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t columns = state.padded, width = 1 + 2 * columns;
  share(step, Doing::exchange, Stage::backward, layer, [&] {
    if (!state.norm)
      return;
    double *own = state.shared.own_sums.get();
    for (int s = 0; s < spread.own; ++s) {
      const Shard &shard = step.blocks.shard(s);
      double *row = own + s * width;
      add_rows(shard.block, shard.block + shard.blocks, state.sum_gs.get(), columns, row);
      add_rows(shard.block, shard.block + shard.blocks, state.sum_gxs.get(), columns, row + columns);
      row[2 * columns] = layer + 1 == hidden() ? loss_of(shard) : 0;
    }
    if (spread.layers)
      spread.layers->begin(Exchange::At::backward, layer, own, spread.own * width);
  });
}

template <class T> void Network<T>::end_sums(const Step &step, int layer) {
  if (step.worker != 0 || config_.norm != Norm::batch)
    return;
  LayerState<T> &state = layers_[layer];
  Shared &shared = state.shared;
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t columns = state.padded, width = 1 + 2 * columns;
  const double *rows = rows_of(step, spread.layers, Stage::backward, layer, shared.own_sums.get(), width, spread.near);
  share(step, Doing::exchange, Stage::backward, layer, [&] {
    add_shards(rows, spread.near, width, 2 * columns, shared.sums.get());
    if (!is_whole_at_layers())
      return;
    std::copy_n(shared.sums.get(), 2 * columns, shared.whole_sums.get());
    if (layer + 1 == hidden()) {
      double loss = 0;
      for (int s = 0; s < spread.shards; ++s)
        loss += rows[s * width + 2 * columns];
      finish_loss(step, loss);
    }
  });
}

// What a shard has to tell at the end of a step: its loss, and what was not told at layers, layer after layer: its sums
// of g and g x̂, and under batch norm its moments.
template <class T> std::int64_t Network<T>::step_width() const {
  std::int64_t width = 1;
  for (const LayerState<T> &state : layers_)
    if (state.norm && !is_whole_at_layers())
      width += 2 * state.padded + (config_.norm == Norm::batch ? 1 + 2 * state.padded : 0);
  return width;
}

template <class T> void Network<T>::begin_step(const Step &step) {
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t width = step_width();
  share(step, Doing::exchange, Stage::exchange, -1, [&] {
    double *to = own_rows_.get();
    for (int s = 0; s < spread.own; ++s) {
      *to++ = loss_of(step.blocks.shard(s));
      for (const LayerState<T> &state : layers_) {
        if (!state.norm || is_whole_at_layers())
          continue;
        const std::int64_t both = 2 * state.padded;
        to = std::copy_n(state.shared.own_sums.get() + s * (1 + both), both, to);
        if (config_.norm == Norm::batch)
          to = std::copy_n(state.shared.own_moments.get() + s * (1 + both), 1 + both, to);
      }
    }
    if (spread.whole)
      spread.whole->begin(Exchange::At::step, hidden(), own_rows_.get(), spread.own * width);
  });
}

template <class T> void Network<T>::end_step(const Step &step) {
  if (step.worker != 0)
    return;
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t width = step_width();
  const double *rows = rows_of(step, spread.whole, Stage::exchange, -1, own_rows_.get(), width, spread.shards);
  share(step, Doing::exchange, Stage::exchange, -1, [&] {
    if (!is_whole_at_layers() || hidden() == 0) {
      double loss = 0;
      for (int s = 0; s < spread.shards; ++s)
        loss += rows[s * width];
      finish_loss(step, loss);
    }
    std::int64_t at = 1;
    for (int l = 0; l < hidden() && !is_whole_at_layers() && !error_; ++l) {
      Shared &shared = layers_[l].shared;
      const std::int64_t columns = layers_[l].padded, both = 2 * columns;
      if (!layers_[l].norm)
        continue;
      add_shards(rows + at, spread.shards, width, both, shared.whole_sums.get());
      at += both;
      if (config_.norm != Norm::batch)
        continue;
      double *moments = shared.before.get(), *mean = shared.moments.get();
      for (int s = 0; s < spread.shards; ++s)
        std::copy_n(rows + s * width + at, 1 + both, moments + s * (1 + both));
      const double count = merge_moments(moments, spread.shards, columns, mean, mean + columns);
      track(step, l, mean, mean + columns, count);
      at += 1 + both;
    }
  });
}

// Worker 0 tells that its parts of all layers from this one on are complete.
template <class T> void Network<T>::send_parts(const Step &step, int layer) {
  if (epoch_->spread.sums && step.worker == 0)
    for (; sent_ > layer && !error_;)
      share(step, Doing::exchange, Stage::exchange, --sent_, [&] { epoch_->spread.whole->send_parts(sent_); });
}

template <class T> void Network<T>::await_parts(const Step &step, int layer) {
  if (epoch_->spread.sums && step.worker == 0)
    for (; summed_ > layer && !error_;)
      share(step, Doing::ranks, Stage::exchange, --summed_, [&] { epoch_->spread.whole->await_parts(summed_); });
}

// The part of a weight gradient that a shard has in this step, of those held in memory here.
template <class T> T *Network<T>::parts_in(const Step &step, int shard, int layer) {
  const Spread<T> &spread = epoch_->spread;
  const std::int64_t turn = spread.alternates ? (spread.round + step.index) % 2 : 0,
                     held = spread.sums ? spread.own : spread.shards;
  T *parts = spread.parts ? spread.parts : shard_parts_.get();
  return parts + (turn * held + shard) * part_size() + part_of(layer).first;
}

template <class T> void Network<T>::prepare_spread(const Epoch &epoch) {
  const Spread<T> &spread = epoch.spread;
  if (!spread.parts)
    shard_parts_.resize(spread.shards * part_size());
  std::int64_t widest = 0, all = 1;
  for (LayerState<T> &state : layers_) {
    const std::int64_t row = 1 + 2 * state.padded;
    widest = std::max(widest, row);
    all += 2 * row;
    if (!state.norm)
      continue;
    Shared &shared = state.shared;
    shared.own_moments.resize(spread.own * row);
    shared.own_sums.resize(spread.own * row);
    for (Buffer<double> *both : {&shared.moments, &shared.sums, &shared.whole_sums})
      both->resize(2 * state.padded);
    shared.before.resize(spread.shards * row);
    std::fill_n(shared.before.get(), spread.shards * row, 0.0); // a run begins with the own moments alone
  }
  own_rows_.resize(spread.own * all);
  rows_.resize(spread.shards * all);
}

// The sum of shards' rows, in their order: `count` numbers of each.
template <class T>
void Network<T>::add_shards(const double *rows, int shards, std::int64_t width, std::int64_t count, double *sum) {
  std::copy_n(rows, count, sum);
  for (int s = 1; s < shards; ++s)
    for (std::int64_t i = 0; i < count; ++i)
      sum[i] += rows[s * width + i];
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
