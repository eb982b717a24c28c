// Batch norm for the sanitizers: every layout in tensors of exactly their size, on one thread and on several, which
// must give the same bits. torch's threads are played by threads of the library.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "batch_norm.h"
#include "parallel.h"

namespace wholebatch {

namespace {

std::int64_t threads = 1;

std::int32_t play_parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, Range range, void *context) {
  const std::int64_t workers = std::min(threads, (end - begin + grain - 1) / grain);
  std::vector<std::jthread> others;
  for (std::int64_t w = 1; w < workers; ++w)
    others.emplace_back(range, begin + (end - begin) * w / workers, begin + (end - begin) * (w + 1) / workers, context);
  range(begin, begin + (end - begin) / workers, context);
  return 0;
}

std::int32_t play_count(std::uint32_t *count) {
  *count = static_cast<std::uint32_t>(threads);
  return 0;
}

template <class T> T make(double value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const auto single = static_cast<float>(value);
    std::uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    return {static_cast<std::uint16_t>(bits >> 16)};
  } else {
    return static_cast<T>(value);
  }
}

// What goes in, made once: to draw a number takes the sanitizers longer than to normalise it.
template <class T> struct Given {
  using A = Accumulator<T>;
  std::vector<T> z, g, residual;
  std::vector<A> weight, bias;

  explicit Given(const Shape &shape) {
    std::mt19937_64 random(1);
    std::normal_distribution<double> normal(3, 1);
    const auto fill = [&](auto &values, std::int64_t count) {
      for (std::int64_t i = 0; i < count; ++i)
        values.push_back(make<typename std::decay_t<decltype(values)>::value_type>(normal(random)));
    };
    fill(z, shape.size()), fill(g, shape.size()), fill(residual, shape.size());
    fill(weight, shape.channels), fill(bias, shape.channels);
    if (!z.empty())
      z.front() = make<T>(std::numeric_limits<double>::infinity());
  }
};

// All that comes out, as bytes.
template <class T> std::vector<unsigned char> everything(const Shape &shape, double slope, const Given<T> &given) {
  using A = Accumulator<T>;
  const auto size = static_cast<std::size_t>(shape.size()), channels = static_cast<std::size_t>(shape.channels);
  std::vector<T> y(size), dz(size), dresidual(size);
  std::vector<A> mean(channels), m2(channels), rstd(channels), sums(2 * channels);
  BatchNorm<T> job{shape,
                   {given.z.data(), given.residual.data(), nullptr, y.data(), nullptr},
                   given.weight.data(),
                   given.bias.data(),
                   A(slope)};
  std::vector<unsigned char> found;
  const auto keep = [&](const auto &values) {
    const auto *bytes = reinterpret_cast<const unsigned char *>(values.data());
    found.insert(found.end(), bytes, bytes + values.size() * sizeof(values[0]));
  };
  job.forward(1e-5, mean.data(), m2.data(), rstd.data());
  keep(y), keep(mean), keep(m2), keep(rstd);
  job.moments(mean.data(), m2.data());
  job.apply(mean.data(), rstd.data());
  keep(y), keep(mean), keep(m2);
  job.x.g = given.g.data();
  job.x.out = dz.data();
  job.x.dresidual = dresidual.data();
  job.backward(mean.data(), rstd.data(), static_cast<double>(shape.count()), sums.data());
  keep(dz), keep(dresidual), keep(sums);
  job.sums(mean.data(), rstd.data(), sums.data());
  job.x.residual = nullptr;
  job.input_gradient(mean.data(), rstd.data(), nullptr, 1);
  keep(dz), keep(sums);
  return found;
}

template <class T> int compare() {
  int same = 0;
  for (const Shape &shape :
       {Shape{64, 20, 1}, Shape{1, 5, 1}, Shape{4001, 20, 1}, Shape{40, 4100, 1}, Shape{9, 17, 4}, Shape{700, 30, 7},
        Shape{5, 3, 49}, Shape{40, 20, 197}, Shape{9, 3, 9001}, Shape{0, 3, 1}, Shape{3, 2, 0}}) {
    const Given<T> given(shape);
    for (double slope : {1.0, 0.0, 0.01}) {
      threads = 1;
      const auto first = everything<T>(shape, slope, given);
      for (threads = 2; threads <= 3; ++threads)
        if (everything<T>(shape, slope, given) == first)
          ++same;
        else
          std::printf("batch norm: (%lld, %lld, %lld), slope %g: other bits on %lld threads\n",
                      static_cast<long long>(shape.n), static_cast<long long>(shape.channels),
                      static_cast<long long>(shape.inner), slope, static_cast<long long>(threads));
    }
  }
  return same;
}

} // namespace

bool batch_norm_same_bits() {
  use_threads(play_parallel_for, play_count);
  const int same = compare<float>() + compare<double>() + compare<BFloat16>();
  std::printf("batch norm: %d of 198 runs of the same bits\n", same);
  return same == 198;
}

} // namespace wholebatch
