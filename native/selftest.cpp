// The engine without Python, for the sanitizers: trains small nets of every kind with several teams, and checks that
// the parameters are the same bits for every number of threads and split, with marks and without. And batch norm, and
// the ranks' mailbox with threads as ranks. Prints the number of nets compared; exits with 1 on a difference.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <random>

#include "dispatch.h"
#include "network.h"

namespace wholebatch {
bool batch_norm_same_bits(); // batch_norm_selftest.cpp
bool mailbox_selftest();     // mailbox_selftest.cpp
} // namespace wholebatch

using namespace wholebatch;

namespace {

constexpr std::int64_t rows = 1325, batch = 150, short_rows = 300; // steps of two blocks, and a tall one of nine
const std::vector<int> sizes{7, 33, 5, 3};

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

template <class T> std::vector<T> train(Configuration configuration, const Problem<T> &problem, bool sparse) {
  Network<T> net(configuration, kernels<T>());
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
  const auto poll = [](std::int64_t, double) {};
  const std::int64_t steps = static_cast<std::int64_t>(problem.offsets.size()) - 1;
  if (configuration.threads == 3) // marks are made by three threads, one of which is slow
    net.record(steps, 1, 1.5);
  std::vector<T> found;
  for (int epoch = 0; epoch < 2; ++epoch)
    found.push_back(static_cast<T>(net.run({table,
                                            problem.order.data(),
                                            problem.offsets.data(),
                                            steps,
                                            epoch * steps,
                                            problem.rates.data(),
                                            true,
                                            poll,
                                            {}})));
  for (int worker = 0; net.timeline() && worker < configuration.threads; ++worker) {
    const Lane &lane = net.timeline()->lane(worker);
    for (std::size_t i = 1; i < lane.count(); ++i)
      if (lane[i].ticks < lane[i - 1].ticks || lane[i].step < lane[i - 1].step)
        found.clear(); // counts as other bits
    if (lane.count() == 0 || lane[lane.count() - 1].step + 1 != steps)
      found.clear();
  }
  for (auto &layer : net.layers()) {
    found.insert(found.end(), layer.weight.value.get(), layer.weight.value.get() + layer.weight.value.size());
    for (int o = 0; layer.norm && o < layer.outputs; ++o) {
      found.push_back(layer.gamma.value[o]);
      found.push_back(static_cast<T>(layer.running_var[o]));
    }
  }
  std::vector<T> out(rows * sizes.back());
  net.predict(table, rows, out.data(), poll);
  found.insert(found.end(), out.begin(), out.end());
  return found;
}

template <class T> bool same_bits(const char *set) {
  const Problem<T> problem;
  int compared = 0;
  for (Norm norm : {Norm::batch, Norm::layer, Norm::rms, Norm::none})
    for (bool after : {false, true})
      for (int variant = 0; variant < 4; ++variant) {
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
        const std::vector<T> first = train(c, problem, false);
        for (int threads : {2, 3})
          for (bool by_neuron : {false, true}) {
            c.threads = threads;
            c.by_neuron = by_neuron;
            const std::vector<T> other = train(c, problem, by_neuron); // CSR and dense are the same bits, too
            ++compared;
            if (first.size() != other.size() ||
                std::memcmp(first.data(), other.data(), first.size() * sizeof(T)) != 0) {
              std::printf("%s: norm %d, after %d, variant %d: %d threads, by neuron %d: other bits\n", set,
                          static_cast<int>(norm), after, variant, threads, by_neuron);
              return false;
            }
          }
      }
  std::printf("%s: %d nets of the same bits\n", set, compared);
  return true;
}

} // namespace

int main() {
  const char *set = name_of(instruction_set());
#ifdef __linux__
  if (!mailbox_selftest())
    return 1;
#endif
  return batch_norm_same_bits() && same_bits<float>(set) && same_bits<double>(set) ? 0 : 1;
}
