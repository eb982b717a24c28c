// The engine over ranks, with threads as ranks on one mapping and one set of parts: the same bits for any number of
// them, and ThreadSanitizer sees whether a part is ever read before it is complete, or overwritten before it was read.
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

#include "mailbox_exchange.h"
#include "selftest_problem.h"

namespace wholebatch {

using namespace selftest;

namespace {

constexpr int shards = 4;
// Of each step: shards without rows, and one of several groups of blocks.
const std::vector<std::int64_t> counts{50, 0, 60, 40, 40, 40, 35, 35, 20, 985, 0, 20};

enum class Sync { all, none, late };

// The shards of one rank: their rows, step after step.
struct Own {
  std::vector<std::int64_t> order, offsets{0};
  template <class T> Own(const Problem<T> &problem, int first, int own) {
    std::int64_t at = 0;
    for (std::size_t i = 0; i < counts.size(); at += counts[i++]) {
      const int shard = static_cast<int>(i) % shards;
      if (shard >= first && shard < first + own)
        order.insert(order.end(), problem.order.begin() + at, problem.order.begin() + at + counts[i]);
      if (shard == shards - 1)
        offsets.push_back(static_cast<std::int64_t>(order.size()));
    }
  }
};

template <class T> std::vector<double> weighings(const Problem<T> &problem) {
  std::vector<double> sums;
  std::int64_t at = 0;
  for (const std::int64_t count : counts) {
    double sum = 0;
    for (std::int64_t i = at; i < at + count; ++i)
      sum += static_cast<double>(problem.weights[problem.order[i]]);
    sums.insert(sums.end(), {sum, sum, static_cast<double>(count)});
    at += count;
  }
  return sums;
}

// What one rank ends with; box: null for a process alone.
template <class T>
std::vector<T> live(const Configuration &c, const Problem<T> &problem, Sync sync, bool overlap, Mailbox *box, int rank,
                    int ranks, T *parts) {
  Network<T> net(c, kernels<T>());
  fill(net);
  std::unique_ptr<MailboxExchange> exchange;
  if (box)
    exchange = std::make_unique<MailboxExchange>(
        *box,
        [](Exchange::At at, int layer, std::int64_t) {
          Mailbox::Header header{};
          header[0] = static_cast<std::uint64_t>(10 * layer + static_cast<int>(at));
          return header;
        },
        [box](Mailbox::Status status) {
          while (status == Mailbox::Status::waiting)
            status = box->wait(0.01);
          if (status != Mailbox::Status::met)
            throw std::runtime_error("the ranks do not meet");
        });
  const std::vector<double> sums = weighings(problem);
  Spread<T> spread;
  spread.shards = shards;
  spread.own = shards / ranks;
  spread.first = rank * spread.own;
  spread.near = sync == Sync::all ? shards : spread.own;
  spread.late = sync == Sync::late && ranks > 1;
  spread.overlap = overlap;
  spread.counts = counts.data();
  spread.weighings = sums.data();
  spread.whole = exchange.get();
  spread.layers = sync == Sync::all && c.norm == Norm::batch ? exchange.get() : nullptr;
  spread.parts = parts;
  spread.alternates = box && (sync != Sync::all || c.norm != Norm::batch);
  const Own own(problem, spread.first, spread.own);
  const auto steps = static_cast<std::int64_t>(own.offsets.size()) - 1;
  const std::vector<double> rates(steps, 0.05);
  if (c.threads == 2)
    net.record(steps, 1, 1.5);
  std::vector<T> found;
  for (int epoch = 0; epoch < 2; ++epoch, spread.round += steps)
    found.push_back(static_cast<T>(net.run({table_of(problem, false), own.order.data(), own.offsets.data(), steps,
                                            epoch * steps, rates.data(), true, [](std::int64_t, double) {}, spread})));
  append_parameters(net, found);
  return found;
}

// What each rank ends with.
template <class T>
std::vector<std::vector<T>> over(int ranks, Configuration c, const Problem<T> &problem, Sync sync, bool overlap) {
  std::vector<std::vector<T>> found(ranks);
  if (ranks == 1)
    return {live<T>(c, problem, sync, overlap, nullptr, 0, 1, nullptr)};
  Mailbox maker(1, ranks, 0);
  std::vector<std::unique_ptr<Mailbox>> others;
  for (int rank = 1; rank < ranks; ++rank)
    others.push_back(std::make_unique<Mailbox>(maker, rank));
  Buffer<T> parts(2 * shards * Network<T>(c, kernels<T>()).part_size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] {
      Configuration own = c;
      own.threads = 1 + (rank + c.threads) % 2; // another number on each rank
      found[rank] = live(own, problem, sync, overlap, rank ? others[rank - 1].get() : &maker, rank, ranks, parts.get());
    });
  for (auto &thread : threads)
    thread.join();
  return found;
}

template <class T> bool same(const std::vector<std::vector<T>> &found, const std::vector<T> &expected) {
  return std::all_of(found.begin(), found.end(), [&](const std::vector<T> &one) {
    return one.size() == expected.size() && std::memcmp(one.data(), expected.data(), one.size() * sizeof(T)) == 0;
  });
}

template <class T> int count_same(int &compared) {
  const Problem<T> problem;
  int right = 0;
  for (Norm norm : {Norm::batch, Norm::layer, Norm::none})
    for (Sync sync : {Sync::all, Sync::none, Sync::late})
      for (int variant : {0, 3}) { // the plain one, and one with a penalty and clipping
        if (norm != Norm::batch && sync != Sync::all)
          continue;
        Configuration c = configuration(norm, false, variant);
        c.spread = true;
        // Over all rows as many ranks as one likes give the same bits; over a rank's own, only threads may differ.
        const auto first = over(sync == Sync::all ? 1 : 2, c, problem, sync, true)[0];
        for (int ranks : {1, 2, 4}) {
          if (sync != Sync::all && ranks != 2)
            continue;
          for (bool by_neuron : {false, true}) {
            if (by_neuron && ranks == 4)
              continue; // as with 2
            c.threads = 2;
            c.by_neuron = by_neuron;
            ++compared;
            right += same(over(ranks, c, problem, sync, !by_neuron), first);
          }
        }
      }
  return right;
}

} // namespace

bool spread_same_bits() {
  int compared = 0;
  const int right = count_same<float>(compared) + count_same<double>(compared);
  std::printf("spread: %d of %d trainings over ranks of the same bits\n", right, compared);
  return right == compared;
}

} // namespace wholebatch
