// The engine without Python, for the sanitizers: trains small nets of every kind with several teams, and checks that
// the parameters are the same bits for every number of threads and split, with marks and without. And batch norm, and
// the ranks' mailbox, and the engine over them, with threads as ranks. Prints the number of nets compared; exits with 1
// on a difference.
#include <cstdio>
#include <cstring>

#include "selftest_problem.h"

namespace wholebatch {
bool batch_norm_same_bits(); // batch_norm_selftest.cpp
bool mailbox_selftest();     // mailbox_selftest.cpp
bool products_are_near();    // products_selftest.cpp
bool spread_same_bits();     // spread_selftest.cpp
} // namespace wholebatch

using namespace wholebatch;
using namespace wholebatch::selftest;

namespace {

template <class T> std::vector<T> train(Configuration configuration, const Problem<T> &problem, bool sparse) {
  Network<T> net(configuration, kernels<T>());
  fill(net);
  const Table<T> table = table_of(problem, sparse);
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
  append_parameters(net, found);
  std::vector<T> out(rows * sizes.back());
  net.predict(table, rows, out.data(), poll);
  found.insert(found.end(), out.begin(), out.end());
  return found;
}

template <class T> bool same_bits(const char *set) {
  const Problem<T> problem;
  const std::vector<int> wide{sizes.front(), 530, 35, sizes.back()}; // operands are packed
  int compared = 0;
  for (Norm norm : {Norm::batch, Norm::layer, Norm::rms, Norm::none})
    for (bool after : {false, true})
      for (int variant = 0; variant < 4; ++variant) {
        Configuration c = configuration(norm, after, variant);
        if (norm == Norm::batch && variant == 0)
          c.sizes = wide;
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
  if (!mailbox_selftest() || !spread_same_bits())
    return 1;
#endif
  return products_are_near() && batch_norm_same_bits() && same_bits<float>(set) && same_bits<double>(set) ? 0 : 1;
}
