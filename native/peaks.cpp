#include "peaks.h"

#include <algorithm>
#include <barrier>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "buffer.h"
#include "dispatch.h"

namespace wholebatch {

namespace {

using Clock = std::chrono::steady_clock;

void check(int threads, int repeats) {
  if (threads < 1 || repeats < 1)
    throw std::invalid_argument("threads and repeats must be at least 1");
}

// work(t) on threads t = 0 ... threads - 1, which begin together, `repeats` times over. Returns the least seconds from
// the first begin to the last end.
template <class Work> double least_seconds(int threads, int repeats, const Work &work) {
  std::barrier meeting(threads);
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(threads)), end(begin);
  double least = -1.0;
  const auto run = [&](int t) {
    for (int repeat = 0; repeat < repeats; ++repeat) {
      meeting.arrive_and_wait();
      begin[static_cast<std::size_t>(t)] = Clock::now();
      work(t);
      end[static_cast<std::size_t>(t)] = Clock::now();
      meeting.arrive_and_wait();
      if (t == 0) {
        const auto took = *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
        const double seconds = std::chrono::duration<double>(took).count();
        least = least < 0.0 ? seconds : std::min(least, seconds);
      }
    }
  };
  std::vector<std::jthread> others;
  for (int t = 1; t < threads; ++t)
    others.emplace_back(run, t);
  run(0);
  others.clear(); // joins
  return least;
}

} // namespace

double fma_peak(int threads, int bursts, double seconds) {
  check(threads, bursts);
  const auto chain = kernels<float>().fma_chain;
  struct alignas(128) Own { // a cache line of its own for each thread, and for the one fetched beside it
    float values[3] = {0.5f, 1.0f, 0.0f};
    double operations = 0.0;
  };
  std::vector<Own> own(static_cast<std::size_t>(threads));
  constexpr std::int64_t few = 20'000;
  const double pilot = least_seconds(1, 3, [&](int) { chain(few, own[0].values); });
  const auto rounds = std::max(few, static_cast<std::int64_t>(static_cast<double>(few) * seconds / pilot));
  const double least = least_seconds(threads, bursts, [&](int t) {
    Own &mine = own[static_cast<std::size_t>(t)];
    mine.operations = chain(rounds, mine.values);
  });
  double operations = 0.0;
  for (const Own &each : own)
    operations += each.operations;
  return operations / least;
}

double memory_bandwidth(int threads, int sweeps, std::int64_t count) {
  check(threads, sweeps);
  if (count < threads)
    throw std::invalid_argument("there must be an element for every thread");
  const auto size = static_cast<std::size_t>(count);
  Buffer<float> a(size), b(size), c(size);
  const double least = least_seconds(threads, sweeps, [&](int t) {
    const std::int64_t begin = count * t / threads, end = count * (t + 1) / threads;
    float *to = a.get();
    const float *from = b.get(), *more = c.get();
    for (std::int64_t i = begin; i < end; ++i)
      to[i] = from[i] + 3.0f * more[i];
  });
  return 3.0 * sizeof(float) * static_cast<double>(count) / least;
}

} // namespace wholebatch
