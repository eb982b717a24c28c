// The problem that the engine's self-tests train on, and the nets that they train.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "dispatch.h"
#include "network.h"

namespace wholebatch::selftest {

inline constexpr std::int64_t rows = 1325, batch = 150, short_rows = 300; // steps of two blocks, and a tall one of nine
inline const std::vector<int> sizes{7, 33, 5, 3};

template <class T> struct Problem {
  std::vector<T> x, values, weights, data;
  std::vector<std::int64_t> classes, order, offsets;
  std::vector<std::int32_t> indices, indptr{0};
  std::vector<double> rates;

  Problem() {
    std::mt19937_64 random(1);
    std::normal_distribution<double> normal(3, 1);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (int c = 0; c < sizes.front(); ++c) {
        x.push_back(random() % 3 ? static_cast<T>(normal(random)) : T(0));
        if (x.back() != 0) {
          data.push_back(x.back());
          indices.push_back(c);
        }
      }
      indptr.push_back(static_cast<std::int32_t>(data.size()));
      for (int c = 0; c < sizes.back(); ++c)
        values.push_back(random() % 2 ? T(1) : T(0));
      weights.push_back(static_cast<T>(1 + random() % 3));
      classes.push_back(static_cast<std::int64_t>(random() % sizes.back()));
      order.push_back(r);
    }
    std::shuffle(order.begin(), order.end(), random);
    for (std::int64_t at = 0; at <= short_rows; at += batch)
      offsets.push_back(at);
    offsets.push_back(rows);
    rates.assign(offsets.size() - 1, 0.05);
  }
};

// variant: one of four losses with one of the optimizers; batch norm's sums have no bias where it takes the mean away.
inline Configuration configuration(Norm norm, bool after, int variant) {
  const LossKind losses[] = {LossKind::cross_entropy, LossKind::mse, LossKind::huber, LossKind::bce};
  const OptimizerKind optimizers[] = {OptimizerKind::sgd, OptimizerKind::adam, OptimizerKind::adamw,
                                      OptimizerKind::sgd};
  Configuration c{};
  c.sizes = sizes;
  c.norm = norm;
  c.after = after;
  c.hidden_bias = norm != Norm::batch || after;
  c.activation = static_cast<Activation>(2 * variant);
  c.dropout = 0.2;
  c.eps = 1e-5;
  c.momentum = 0.1;
  c.loss = losses[variant];
  c.label_smoothing = 0.1;
  c.delta = c.scale = 1;
  c.alpha = variant % 2 ? 0.1 : 0;
  c.optimizer = optimizers[variant];
  c.nesterov = variant == 3;
  c.optimizer_momentum = c.beta1 = 0.9;
  c.beta2 = 0.999;
  c.optimizer_eps = 1e-8;
  c.weight_decay = 0.01;
  c.max_grad_norm = variant > 1 ? 0.5 : 0;
  c.seed = 5;
  c.threads = 1;
  return c;
}

template <class T> void fill(Network<T> &net) {
  std::mt19937 random(2);
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  for (auto &layer : net.layers()) {
    for (int o = 0; o < layer.outputs; ++o)
      for (int i = 0; i < layer.depth; ++i)
        layer.weight.value[net.column(layer, o).at(i)] = static_cast<T>(uniform(random));
    for (int o = 0; layer.norm && o < layer.outputs; ++o)
      layer.gamma.value[o] = layer.running_var[o] = 1;
  }
  net.refresh();
}

template <class T> Table<T> table_of(const Problem<T> &problem, bool sparse) {
  Table<T> table;
  if (sparse) {
    table.data = problem.data.data();
    table.indices32 = problem.indices.data();
    table.indptr32 = problem.indptr.data();
  } else {
    table.dense = problem.x.data();
  }
  table.classes = problem.classes.data();
  table.values = problem.values.data();
  table.weights = problem.weights.data();
  return table;
}

// All that training changes.
template <class T> void append_parameters(Network<T> &net, std::vector<T> &found) {
  for (auto &layer : net.layers()) {
    for (int o = 0; o < layer.outputs; ++o) // not as they lie in panels, which go by threads
      for (int i = 0; i < layer.depth; ++i)
        found.push_back(layer.weight.value[net.column(layer, o).at(i)]);
    for (int o = 0; layer.norm && o < layer.outputs; ++o) {
      found.push_back(layer.gamma.value[o]);
      found.push_back(static_cast<T>(layer.running_var[o]));
    }
  }
}

} // namespace wholebatch::selftest
