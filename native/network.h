// The feed-forward net as example-threads: one team of workers lives through a whole epoch, and a step is one parallel
// region.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "blocks.h"
#include "buffer.h"
#include "claims.h"
#include "kernels.h"
#include "moments.h"
#include "products.h"
#include "spread.h"
#include "state.h"
#include "team.h"
#include "timeline.h"

namespace wholebatch {

// The loss was not finite.
struct Diverged {
  std::int64_t step; // from 1
  int layer;         // from 1; 0 is the input
};

template <class T> class Network {
public:
  Network(const Configuration &configuration, const Kernels<T> &kernels);

  std::vector<LayerState<T>> &layers() { return layers_; }
  // Where the weights of an output stand in its layer's panels: input i at offset + i * stride.
  struct Column {
    std::size_t offset, stride;
    std::size_t at(int input) const { return offset + static_cast<std::size_t>(input) * stride; }
  };
  Column column(const LayerState<T> &layer, int output) const;
  // Copies weights, (outputs, inputs), into one of a layer's buffers or out of it.
  void exchange_weights(const LayerState<T> &layer, bool to_net, T *rows, Buffer<T> &buffer);
  bool is_finite(std::size_t layer) const; // all its parameters are
  // Makes the transposes, after parameters were set.
  void refresh();

  struct Epoch {
    Table<T> table;
    const std::int64_t *order;   // rows in the order of this epoch, of this process
    const std::int64_t *offsets; // steps + 1: where mini-batches begin in `order`
    std::int64_t steps, first_step;
    const double *learning_rates; // one per step; null: gradients only
    bool track;                   // move the running statistics
    // Called a few times a second on the calling thread with (examples done, sum of loss times examples). It may throw.
    std::function<void(std::int64_t, double)> poll;
    Spread<T> spread;
  };
  // Returns the sum over steps of loss times examples, of the whole mini-batches. Throws Diverged, or what poll or an
  // exchange threw: parameters are then unspecified.
  double run(const Epoch &epoch);
  // Elements that the parts of all weight gradients take up, for one shard.
  std::int64_t part_size() const { return part_offsets_.back(); }
  // Where in them those of a layer are: [begin, end).
  std::pair<std::int64_t, std::int64_t> part_of(int layer) const {
    return {part_offsets_.at(static_cast<std::size_t>(layer)), part_offsets_.at(static_cast<std::size_t>(layer) + 1)};
  }
  // Nanoseconds that the calling thread was parked or put aside in the last run.
  std::int64_t waited() const { return team_ ? team_->waited() : 0; }
  // Nanoseconds of the last run in which it told other ranks something and merged what they told, and in which it
  // waited for them.
  std::int64_t exchanged() const { return exchanged_; }
  std::int64_t awaited() const { return awaited_; }
  std::int64_t lasted() const { return lasted_; } // nanoseconds of the last run's steps, all together
  // From the next run on, marks of up to so many of its steps; 0: of none. The worker `slow` (-1: nobody) computes
  // `factor` times as long: it does nothing after each of its computations, which changes no number.
  void record(std::int64_t steps, int slow, double factor, int turns = 1, int turn = 0) {
    timeline_ = steps > 0 ? std::make_unique<Timeline>(config_.threads, steps, static_cast<int>(layers_.size()), slow,
                                                       Delay{factor, turns, turn})
                          : nullptr;
  }
  const Timeline *timeline() const { return timeline_.get(); }
  double total_penalty() const { return total_penalty_; } // the part of the last run's loss that alpha added

  // Outputs in eval mode into out (rows, outputs).
  void predict(const Table<T> &table, std::int64_t rows, T *out, const std::function<void(std::int64_t, double)> &poll);

private:
  // A worker's part of a weight matrix: rows of its depth, and panels of its outputs.
  struct Tile {
    Range depth, panels;
  };
  // Rows of a block.
  struct Matrix {
    T *at;
    std::int64_t ld;
  };
  // A block as the left operand of a product: as it is, or packed (then ld is 0), or rounded.
  struct Left {
    Matrix matrix;
    Tiles tiles;
  };
  enum class Way { forward, back };
  // The step under way, as one worker sees it.
  struct Step {
    int worker;
    std::int64_t index, rows, whole; // rows of this process, and of the whole mini-batch
    Blocks blocks;
    const std::int64_t *order;
    LossTerms<T> loss;
    UpdateTerms<T> update;
    bool updates;
    double penalty;       // alpha over the sum of the examples' weights
    double examples;      // the sum of their weights
    std::int64_t counted; // those whose weight is not 0
  };

  // What is shared out: a set of units for each of a layer's phases.
  enum class Phase { forward, backward, gradient, reduction };
  static constexpr int phases = 4;
  int set_of(Phase phase, int layer) const { return phases * layer + static_cast<int>(phase); }
  // Units go to whoever is free where a meeting stands before and after; else everyone goes on with his own examples.
  bool is_claimed(Phase phase, int layer) const {
    return config_.threads > 1 && !config_.by_neuron &&
           (config_.norm == Norm::batch || phase == Phase::gradient || phase == Phase::reduction ||
            (phase == Phase::backward && layer < hidden()));
  }
  bool is_of_weights(Phase phase) const { return phase == Phase::gradient || phase == Phase::reduction; }
  std::int64_t units_of(const Blocks &blocks, Phase phase, int layer) const;
  std::int64_t stretch_of(const LayerState<T> &layer) const;
  void deal(int worker, std::int64_t index, bool of_weights);

  // What the worker did since its mark before belongs to this, where it is recorded.
  void computed(const Step &step, Stage stage, int layer) {
    if (timeline_)
      timeline_->lane(step.worker).at(stage, layer)->computed();
  }
  void merged(const Step &step, Stage stage, int layer) {
    if (timeline_)
      timeline_->lane(step.worker).at(stage, layer)->mark(Doing::merge);
  }
  bool meet(const Step &step, Stage stage, int layer) {
    return team_->meet(step.worker, timeline_ ? timeline_->lane(step.worker).at(stage, layer) : nullptr);
  }

  // step.cpp: the phases
  bool step(int worker, std::int64_t index);
  bool up(const Step &step);
  bool form_first_gradient(const Step &step);
  void outputs(const Step &step);
  void down(const Step &step, int layer);
  bool end_update(const Step &step);
  // dL/dZ of the first layer is not there yet after the way down.
  bool has_first_gradient_to_form(const Step &step) const {
    return !config_.by_neuron && (products_ || is_grouped(step, 0) || (hidden() > 0 && config_.norm != Norm::none));
  }
  bool meet_after(const Step &step, int layer);
  void forward(const Step &step, int layer);
  void output(const Step &step, std::int64_t block);
  void backward(const Step &step, int layer, std::int64_t block, bool has_inputs);
  template <class F> void each_block(const Step &step, Range blocks, F f) {
    for (std::int64_t b = blocks.begin; b < blocks.end; ++b) {
      if (b > blocks.begin)
        poll(step.worker);
      f(b);
    }
  }
  // f(block) for the blocks that fall to this worker in a phase.
  template <class F> void each_own_block(const Step &step, Phase phase, int layer, F f) {
    if (!is_claimed(phase, layer))
      return each_block(step, own_blocks(step), f);
    const bool by_group = units_are_groups(step.blocks, phase, layer);
    for (std::int64_t unit; (unit = claims_.next(set_of(phase, layer), step.worker)) >= 0; poll(step.worker))
      each_block(step,
                 by_group ? Range{step.blocks.group_begin(unit), step.blocks.group_begin(unit + 1)}
                          : Range{unit, unit + 1},
                 f);
  }
  Matrix inputs(const Step &step, int layer, std::int64_t block, std::int64_t begin, std::int64_t end, bool again);
  Matrix place_of_inputs(const Step &step, int layer, Rows rows);
  void want_inputs(Wanted &wanted, int layer, const std::int64_t *order, Rows rows) const;
  const Wanted &want_up(const Step &step, int layer, std::int64_t block);
  const Wanted &want_down(const Step &step, int layer, std::int64_t block, bool from_outputs);
  void want_next_rows(const Step &step, int layer);
  Matrix gradient_of_sums(const Step &step, int layer, std::int64_t block, Range panels);
  void add_to_part(const Step &step, int layer, std::int64_t block, const Matrix &h, const Matrix &dz, Range panels,
                   const Wanted &wanted, std::int64_t parts);
  void row_statistics(const Step &step, int layer, Range blocks);
  Step begin(int worker, std::int64_t index);
  bool weighs_moments() const { return config_.weigh_moments && epoch_->table.weights; }
  const Between<T> &between(const Step &step, int layer) const { return work_[step.worker].layers[layer].between; }
  void weigh(Step &step, double &weight) const;

  // statistics.cpp: what is known of a whole mini-batch once its blocks are
  void centre(const Epoch &epoch);
  void choose_centre(const Epoch &epoch);
  double count_of(const Step &step, Rows rows) const;
  void add_centre(const LayerState<T> &state, const double *mean);
  void finish_moments(const Step &step, int layer);
  void track(const Step &step, int layer, const double *mean, const double *m2, double count);
  void finish_sums(const Step &step, int layer);
  double loss_of(const Shard &shard) const;
  void finish_loss(const Step &step, double loss);

  // spread.cpp: a step of a mini-batch in shards, and what worker 0 exchanges with other ranks in it
  bool is_spread() const { return epoch_->spread.counts != nullptr; }
  // The moments and sums that a layer uses are those of the whole mini-batch.
  bool is_whole_at_layers() const {
    return config_.norm == Norm::batch && epoch_->spread.near == epoch_->spread.shards;
  }
  bool step_spread(int worker, std::int64_t index);
  void share_moments(const Step &step, int layer);
  void begin_sums(const Step &step, int layer);
  void end_sums(const Step &step, int layer);
  void begin_step(const Step &step);
  void end_step(const Step &step);
  void send_parts(const Step &step, int layer);
  void await_parts(const Step &step, int layer);
  void prepare_spread(const Epoch &epoch);
  T *parts_in(const Step &step, int shard, int layer);
  template <class F> void share(const Step &step, Doing doing, Stage stage, int layer, F f);
  const double *rows_of(const Step &step, Exchange *exchange, Stage stage, int layer, const double *own,
                        std::int64_t width, int shards);
  static void add_shards(const double *rows, int shards, std::int64_t width, std::int64_t count, double *sum);
  std::int64_t step_width() const;

  // products.cpp: of float32 numbers, or of rounded ones
  Left left_operand(int worker, int rows, int layer, Way way, const Matrix &matrix, std::int64_t panels);
  using Pack = decltype(Kernels<T>::pack);
  Matrix left_matrix(int worker, int rows, int columns, const Matrix &matrix, std::int64_t panels, Pack pack);
  Matrix right_matrix(int worker, int rows, const Matrix &left, const Matrix &dz, std::int64_t first, int vectors);
  void multiply(const Left &left, int rows, int layer, Way way, std::int64_t panel, T *out, std::int64_t ld,
                const Ahead &ahead);
  void round_weights(int layer, const Tile &tile);
  Tiles tiles_of(Buffer<Rounded> &buffer, std::int64_t steps) const {
    return {buffer.get(), steps, static_cast<std::int64_t>(buffer.size()) / rounded_parts_};
  }
  std::int64_t rounded_size(std::int64_t outer, std::int64_t steps) const;
  std::int64_t steps_kept(const LayerState<T> &layer) const;
  void prepare_products();
  struct Run { // of steps of an operand's inner index
    std::int64_t begin, count;
  };
  Run run_of(const Step &step, std::int64_t block) const;
  void keep_gradient(const Step &step, int layer, std::int64_t block, const Matrix &dz, Range panels);
  void add_rounded_to_part(const Step &step, int layer, std::int64_t block, const Matrix &h, const Matrix &dz,
                           Range panels);
  void add_up_rounded(const Step &step, int layer, const Tile &tile, const Shard &shard, T *sum);

  // update.cpp: gradients of the parameters, and the optimizer
  void weight_gradient(const Step &step, int layer);
  void reduce(const Step &step, int layer);
  template <class F> void each_tile(const Step &step, Phase phase, int layer, F f);
  void add_up(const Step &step, int layer, const Tile &tile, const Shard &shard, T *sum);
  void sum_groups(int layer, const Tile &tile, const Shard &shard, T *sum);
  void finish_gradient(const Step &step, int layer, const Tile &tile);
  void finish_norm(const Step &step, int layer);
  void update_norm(const Step &step, int layer);
  void update_layer(const Step &step, int layer, const Tile &tile, bool weights_are_done);
  void transpose(int layer, std::int64_t panel, Range inputs);
  // Nothing is added to the gradient and nobody asks for it.
  bool updates_at_once(const Step &step) const {
    return step.updates && config_.alpha == 0 && config_.max_grad_norm == 0 && !is_spread();
  }
  void square_rows(const LayerState<T> &state, const Tile &tile, const Buffer<T> &of, Buffer<double> &squares);
  void clip_and_update(const Step &step);
  void add_penalty(const Step &step);

  // network.cpp: the rest
  void open(const Epoch &epoch); // what a run counts and polls begins anew
  void close();                  // throws what ended it
  void prepare(const Layout &layout);
  void gather(const Table<T> &table, const std::int64_t *rows, int count, std::int64_t begin, std::int64_t end,
              bool centred, T *h, std::int64_t ldh) const;
  void prepare_between(int worker, int layer);
  int groups_of(std::int64_t blocks) const;
  bool is_grouped(const Step &step, int layer) const { return step.blocks.grouped && summed_in_groups(layers_[layer]); }
  bool units_are_groups(const Blocks &blocks, Phase phase, int layer) const {
    return phase == Phase::backward && blocks.grouped && summed_in_groups(layers_[layer]);
  }
  // Whether a block's part of the weight gradient is added at once to a sum that stays in cache.
  static bool summed_in_groups(const LayerState<T> &layer) { return weights_of(layer) <= (std::int64_t{1} << 17); }
  static std::int64_t weights_of(const LayerState<T> &layer) {
    return static_cast<std::int64_t>(layer.depth) * layer.outputs;
  }
  // dL/dZ takes dL/dy's place: each worker does it for its own rows on the way down.
  bool has_gradient_of_sums(const Step &step, int layer) const {
    return layer == hidden() || config_.norm == Norm::none ||
           (!config_.by_neuron && !is_grouped(step, layer) && !products_);
  }
  Range own_blocks(const Step &step) const;
  Range own_panels(const Step &step, const Panels &panels) const {
    return config_.by_neuron ? panels.of(step.worker) : panels.all();
  }
  Tile tile(const Step &step, int index) const;
  void poll(int worker);
  Team &team();

  // f(panel, offset, count) for each panel's stretch of a tile: its rows stand one behind the other.
  template <class F> void each_stretch(const LayerState<T> &state, const Tile &tile, F f) const {
    if (tile.depth.begin < tile.depth.end)
      for (std::int64_t p = tile.panels.begin; p < tile.panels.end; ++p) {
        const std::int64_t wide = state.panels.wide(p);
        f(p, state.panels.first(p) * state.depth + tile.depth.begin * wide, (tile.depth.end - tile.depth.begin) * wide);
      }
  }
  int hidden() const { return static_cast<int>(layers_.size()) - 1; }
  bool row_norm() const { return config_.norm == Norm::layer || config_.norm == Norm::rms; }
  T *gradients_of(int layer) { return g_[layer % 3].get(); }

  Configuration config_;
  const Kernels<T> &kernels_;
  const Products<T> *products_; // null: products are those of `kernels_`
  int rounded_parts_;           // of an operand
  std::vector<LayerState<T>> layers_;
  std::vector<Workspace<T>> work_;
  std::unique_ptr<Team> team_;
  std::unique_ptr<Timeline> timeline_; // null: nothing is recorded
  Claims claims_;
  Buffer<T> class_weights_;
  Buffer<T> centre_; // taken from each input column before the first layer, where batch norm takes it away again
  Buffer<double> centre_sums_;
  bool centred_ = false;
  // dL/dy of the layer under way, of the one below it (being written), and of the one above (its weight gradient still
  // reads it)
  Buffer<T> g_[3];
  Buffer<T> parts_[2]; // sums over groups of blocks of a weight gradient, for odd and even layers: [group][part_size_]
  // With rounded operands, for odd and even layers: dL/dZ, and each block's sums of it: [block][padded]
  Buffer<Rounded> rounded_gradients_[2];
  Buffer<T> bias_sums_[2];
  Buffer<T> ones_;                                // one for each row of a block
  std::int64_t part_size_ = 0, part_weights_ = 1; // of the largest matrix that is summed so, with padding and without
  std::vector<std::int64_t> part_offsets_{0};     // of each layer's weights in a shard's part
  Buffer<T> shard_parts_;                         // [shard][weight], where one process has all shards
  Buffer<double> own_rows_, rows_;                // at a meeting: those of the own shards, and of all that meet
  Layout layout_;
  int sent_ = 0, summed_ = 0; // the parts of layers from here on were sent, and are summed
  std::int64_t ldh_ = 0, lddz_ = 0;
  Buffer<double> loss_blocks_;

  const Epoch *epoch_ = nullptr;
  std::exception_ptr error_; // set by worker 0
  double total_loss_ = 0, total_penalty_ = 0;
  std::int64_t examples_ = 0, next_poll_ = 0, lasted_ = 0, exchanged_ = 0, awaited_ = 0;
};

extern template class Network<float>;
extern template class Network<double>;

} // namespace wholebatch
