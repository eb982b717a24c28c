// How a part is cut into pieces: groups of channels times chunks of their elements, both functions of the shape alone.
// A plan says what to do with one piece; batch_norm.cpp says in which order and by whom.
#pragma once

#include <algorithm>
#include <numeric>

#include "batch_norm.h"

namespace wholebatch {

// Chan's formula for `channels` pairs: what was found in n_b elements joins what was found in n_a. See moments.h.
inline void merge_into(std::int64_t channels, double n_a, double n_b, const double *__restrict mean_b,
                       const double *__restrict m2_b, double *__restrict mean, double *__restrict m2) {
  const double share = n_b / (n_a + n_b), weight = n_a * share;
  for (std::int64_t c = 0; c < channels; ++c) {
    const double delta = mean_b[c] - mean[c];
    mean[c] += delta * share;
    m2[c] += m2_b[c] + delta * delta * weight;
  }
}

// As many chunks as give each at least 32768 elements, and at most 128 of them.
inline std::int64_t chunks_of(std::int64_t elements, std::int64_t units) {
  return std::clamp<std::int64_t>(elements / 32768, 1, std::clamp<std::int64_t>(units, 1, 128));
}

// Rows, and planes of few elements: a matrix whose columns are channels. Narrow rows are taken several at a time as one
// long row (its columns are then `fold` times the channels), and the columns of a plane are `inner` to a channel.
template <class T> class ColumnsPlan {
public:
  using A = Accumulator<T>;

  ColumnsPlan(const Shape &shape, const BatchNormKernels<T> &kernels) : shape_(shape), kernels_(kernels) {
    const std::int64_t c = shape.channels;
    if (shape.inner == 1 && c < 128) { // whole vectors, where the channels are not
      const std::int64_t whole = 16 / std::gcd(c, std::int64_t{16}),
                         wanted = whole * ((128 + c * whole - 1) / (c * whole));
      fold_ = std::clamp<std::int64_t>(shape.n / 16, 1, wanted);
    }
    width_ = c * fold_ * shape.inner;
    rows_ = shape.n / fold_;
    partial_ = shape.n % fold_;
    const std::int64_t most = strip_columns / (fold_ * shape.inner), strips = (c + most - 1) / most;
    strip_ = (c + strips - 1) / strips;
    if (strips > 1 && strip_ > 16)
      strip_ = std::min(most, (strip_ + 15) / 16 * 16);
    groups = (c + strip_ - 1) / strip_;
    chunks = chunks_of(rows_ * strip_ * fold_ * shape.inner, rows_);
  }

  std::int64_t groups, chunks;
  std::int64_t width() const { return width_; }
  std::int64_t first_channel(std::int64_t group) const { return std::min(shape_.channels, group * strip_); }
  // Elements of a channel in a chunk.
  double count(std::int64_t chunk) const {
    return static_cast<double>((end_row(chunk) - begin_row(chunk)) * fold_ * shape_.inner + rest(chunk));
  }
  // A strip of rows that are longer stays in cache only where it is short.
  bool group_by_group(std::int64_t threads) const {
    const std::int64_t strip = rows_ * strip_ * fold_ * shape_.inner * static_cast<std::int64_t>(sizeof(T));
    return chunks == 1 || (groups >= 2 * threads && strip <= 1 << 19);
  }
  // Chunk by chunk: a worker's units lie one after the other.
  std::int64_t group_of(std::int64_t unit) const { return unit % groups; }
  std::int64_t chunk_of(std::int64_t unit) const { return unit / groups; }

  // The columns [begin, end) of the terms that belong to a group, from one value per channel.
  void spread(std::int64_t group, const A *from, A *to) const {
    const std::int64_t begin = first_channel(group), end = first_channel(group + 1);
    for (std::int64_t f = 0; f < fold_; ++f) {
      if (shape_.inner == 1) { // most often: one call for all
        std::copy_n(from + begin, end - begin, to + f * shape_.channels + begin);
        continue;
      }
      for (std::int64_t c = begin; c < end; ++c)
        std::fill_n(to + (f * shape_.channels + c) * shape_.inner, shape_.inner, from[c]);
    }
  }

  void moments(const T *z, std::int64_t group, std::int64_t chunk, double *mean, double *m2) const {
    alignas(64) double means[strip_columns], m2s[strip_columns];
    const std::int64_t channels = first_channel(group + 1) - first_channel(group), rows = runs(group, chunk).count;
    std::fill_n(mean, channels, 0.0);
    std::fill_n(m2, channels, 0.0);
    double before = 0;
    if (rows > 0) {
      const auto own = static_cast<double>(rows);
      kernels_.column_moments(z + offset(group, chunk), runs(group, chunk), means, m2s);
      if (shape_.inner > 1)
        return fold_inner(channels, own, means, m2s, mean, m2);
      for (std::int64_t f = 0; f < fold_; ++f, before += own)
        merge_into(channels, before, own, means + f * channels, m2s + f * channels, mean, m2);
    }
    std::fill_n(m2s, channels, 0.0);
    for (std::int64_t r = 0; r < rest(chunk); ++r, before += 1) {
      kernels_.column_moments(z + rows_ * width_ + r * channels, {1, channels, channels}, means, m2s);
      merge_into(channels, before, 1, means, m2s, mean, m2);
    }
  }

  void sums(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, double *sum,
            double *sum_xhat) const {
    alignas(64) double own[strip_columns], own_xhat[strip_columns];
    const Runs all = runs(group, chunk);
    const std::int64_t channels = first_channel(group + 1) - first_channel(group);
    std::fill_n(own, all.length, 0.0);
    std::fill_n(own_xhat, all.length, 0.0);
    if (all.count > 0)
      kernels_.column_sums(x.at(offset(group, chunk)), all, terms.at(first_column(group)), own, own_xhat);
    if (rest(chunk) > 0)
      kernels_.column_sums(x.at(rows_ * width_), {1, rest(chunk) * channels, 0}, terms, own, own_xhat);
    for (std::int64_t c = 0; c < channels; ++c) {
      sum[c] = sum_xhat[c] = 0;
      for (std::int64_t f = 0; f < fold_; ++f)
        for (std::int64_t i = 0; i < shape_.inner; ++i) {
          sum[c] += own[(f * channels + c) * shape_.inner + i];
          sum_xhat[c] += own_xhat[(f * channels + c) * shape_.inner + i];
        }
    }
  }

  void apply(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, Sweep sweep) const {
    map(kernels_.column_apply, x, group, chunk, terms, sweep);
  }
  void gradient(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, Sweep sweep) const {
    map(kernels_.column_gradient, x, group, chunk, terms, sweep);
  }

private:
  template <class Kernel>
  void map(Kernel kernel, const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms,
           Sweep sweep) const {
    kernel(x.at(offset(group, chunk)), runs(group, chunk), terms.at(first_column(group)), sweep);
    if (rest(chunk) > 0)
      kernel(x.at(rows_ * width_), {1, rest(chunk) * shape_.channels, 0}, terms, sweep);
  }

  // The `inner` columns of a channel, all of `own` elements.
  void fold_inner(std::int64_t channels, double own, const double *means, const double *m2s, double *mean,
                  double *m2) const {
    const auto inner = static_cast<double>(shape_.inner);
    for (std::int64_t c = 0; c < channels; ++c) {
      const double *own_mean = means + c * shape_.inner, *own_m2 = m2s + c * shape_.inner;
      mean[c] = std::accumulate(own_mean, own_mean + shape_.inner, 0.0) / inner;
      m2[c] = std::accumulate(own_m2, own_m2 + shape_.inner, 0.0);
      for (std::int64_t i = 0; i < shape_.inner; ++i)
        m2[c] += own * (own_mean[i] - mean[c]) * (own_mean[i] - mean[c]);
    }
  }

  std::int64_t begin_row(std::int64_t chunk) const { return rows_ * chunk / chunks; }
  std::int64_t end_row(std::int64_t chunk) const { return begin_row(chunk + 1); }
  std::int64_t rest(std::int64_t chunk) const {
    return chunk == chunks - 1 ? partial_ : 0;
  } // rows that fill no long one
  std::int64_t first_column(std::int64_t group) const { return first_channel(group) * shape_.inner; }
  std::int64_t offset(std::int64_t group, std::int64_t chunk) const {
    return begin_row(chunk) * width_ + first_column(group);
  }
  // A folded matrix has a single strip.
  Runs runs(std::int64_t group, std::int64_t chunk) const {
    return {end_row(chunk) - begin_row(chunk), (first_column(group + 1) - first_column(group)) * fold_, width_};
  }

  Shape shape_;
  const BatchNormKernels<T> &kernels_;
  std::int64_t fold_ = 1, width_, rows_, partial_, strip_;
};

// Planes: a group is a channel, its blocks are pieces of planes, or several whole ones, of about 4096 elements.
template <class T> class ChannelsPlan {
public:
  using A = Accumulator<T>;
  static constexpr std::int64_t most =
      4096; // 16 KiB of float32: the second pass over a block is from first-level cache

  ChannelsPlan(const Shape &shape, const BatchNormKernels<T> &kernels)
      : groups(shape.channels), shape_(shape), kernels_(kernels) {
    if (shape.inner > most)
      pieces_ = (shape.inner + most - 1) / most;
    else
      together_ = most / shape.inner;
    blocks_ = pieces_ > 1 ? shape.n * pieces_ : (shape.n + together_ - 1) / together_;
    chunks = chunks_of(shape.count(), blocks_);
  }

  std::int64_t groups, chunks;
  std::int64_t width() const { return shape_.channels; }
  std::int64_t first_channel(std::int64_t group) const { return group; }
  double count(std::int64_t chunk) const {
    double sum = 0;
    for (std::int64_t b = begin_block(chunk); b < begin_block(chunk + 1); ++b)
      sum += elements(runs(b));
    return sum;
  }
  // A channel of usual size stays in the second-level cache from one pass to the next.
  bool group_by_group(std::int64_t threads) const { return chunks == 1 || groups >= 2 * threads; }
  std::int64_t group_of(std::int64_t unit) const { return unit / chunks; }
  std::int64_t chunk_of(std::int64_t unit) const { return unit % chunks; }
  void spread(std::int64_t group, const A *from, A *to) const { to[group] = from[group]; }

  void moments(const T *z, std::int64_t group, std::int64_t chunk, double *mean, double *m2) const {
    double before = 0;
    *mean = *m2 = 0;
    for (std::int64_t b = begin_block(chunk); b < begin_block(chunk + 1); ++b) {
      double own_mean, own_m2;
      const double *near = before > 0 ? mean : nullptr; // blocks are about as large as each other
      kernels_.channel_moments(z + offset(group, b), runs(b), next(group, b), near, &own_mean, &own_m2);
      merge_into(1, before, elements(runs(b)), &own_mean, &own_m2, mean, m2);
      before += elements(runs(b));
    }
  }

  void sums(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, double *sum,
            double *sum_xhat) const {
    *sum = *sum_xhat = 0;
    for (std::int64_t b = begin_block(chunk); b < begin_block(chunk + 1); ++b)
      kernels_.channel_sums(x.at(offset(group, b)), runs(b), next(group, b), terms.at(group), sum, sum_xhat);
  }

  void apply(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, Sweep sweep) const {
    for (std::int64_t b = begin_block(chunk); b < begin_block(chunk + 1); ++b)
      kernels_.channel_apply(x.at(offset(group, b)), runs(b), terms.at(group), sweep);
  }
  void gradient(const Tensors<T> &x, std::int64_t group, std::int64_t chunk, const Terms<A> &terms, Sweep sweep) const {
    for (std::int64_t b = begin_block(chunk); b < begin_block(chunk + 1); ++b)
      kernels_.channel_gradient(x.at(offset(group, b)), runs(b), terms.at(group), sweep);
  }

private:
  static double elements(Runs runs) { return static_cast<double>(runs.count * runs.length); }
  std::int64_t begin_block(std::int64_t chunk) const { return blocks_ * chunk / chunks; }
  std::int64_t begin_plane(std::int64_t block) const {
    return pieces_ > 1 ? block / pieces_ : shape_.n * block / blocks_;
  }
  std::int64_t begin_in_plane(std::int64_t piece) const { // in whole lines
    return piece == pieces_ ? shape_.inner : shape_.inner * piece / pieces_ / 64 * 64;
  }
  Runs runs(std::int64_t block) const {
    const std::int64_t stride = shape_.channels * shape_.inner;
    if (pieces_ > 1) {
      const std::int64_t piece = block % pieces_;
      return {1, begin_in_plane(piece + 1) - begin_in_plane(piece), stride};
    }
    return {begin_plane(block + 1) - begin_plane(block), shape_.inner, stride};
  }
  std::int64_t offset(std::int64_t group, std::int64_t block) const {
    const std::int64_t within = pieces_ > 1 ? begin_in_plane(block % pieces_) : 0;
    return (begin_plane(block) * shape_.channels + group) * shape_.inner + within;
  }

  std::int64_t next(std::int64_t group, std::int64_t block) const {
    return block + 1 < blocks_ ? offset(group, block + 1) - offset(group, block) : 0;
  }

  Shape shape_;
  const BatchNormKernels<T> &kernels_;
  std::int64_t pieces_ = 1, together_ = 1, blocks_; // pieces of a plane, or planes together
};

} // namespace wholebatch
