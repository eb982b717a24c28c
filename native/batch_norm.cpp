#include "batch_norm.h"

#include <algorithm>
#include <memory>

#include "batch_norm_plans.h"
#include "batch_norm_statistics.h"
#include "dispatch.h"
#include "parallel.h"

namespace wholebatch {

namespace {

constexpr std::int64_t least_work = 32768; // elements for which another thread is asked: about 10 us of work

// One call: the plan's pieces, the table that they fill, and the terms that they read.
template <class T, class Plan> class Call {
public:
  using A = Accumulator<T>;

  Call(const BatchNorm<T> &job, const BatchNormKernels<T> &kernels)
      : job_(job), plan_(job.shape, kernels),
        table_(std::make_unique_for_overwrite<double[]>(size(2 * plan_.chunks * channels()))),
        columns_(std::make_unique_for_overwrite<A[]>(size(6 * plan_.width()))),
        values_(std::make_unique_for_overwrite<A[]>(size(2 * channels()))),
        sweep_(sweep_of(job.shape.size() * static_cast<std::int64_t>(sizeof(T)))) {
    A *at = columns_.get();
    for (A **column : {&mean_, &rstd_, &scale_, &bias_, &first_, &second_}) {
      *column = at;
      at += plan_.width();
    }
  }

  void moments(A *mean, A *m2) {
    gather([&](std::int64_t g, std::int64_t k) { piece_moments(g, k); },
           [&](std::int64_t g) { merge_moments(g, mean, m2); });
  }

  void apply(const A *mean, const A *rstd) {
    write([&](std::int64_t g) { prepare(g, mean, rstd); },
          [&](std::int64_t g, std::int64_t k) { plan_.apply(job_.x, g, k, terms(false), sweep_); });
  }

  void forward(double eps, A *mean, A *m2, A *rstd) {
    gather_and_write([&](std::int64_t g, std::int64_t k) { piece_moments(g, k); },
                     [&](std::int64_t g) {
                       merge_moments(g, mean, m2);
                       const std::int64_t c = plan_.first_channel(g), own = plan_.first_channel(g + 1) - c;
                       find_rstd<A>(own, m2 + c, static_cast<double>(job_.shape.count()), eps, rstd + c);
                       prepare(g, mean, rstd);
                     },
                     [&](std::int64_t g, std::int64_t k) { plan_.apply(job_.x, g, k, terms(false), sweep_); });
  }

  void sums(const A *mean, const A *rstd, A *sums) {
    each_group([&](std::int64_t g) { prepare(g, mean, rstd); });
    gather([&](std::int64_t g, std::int64_t k) { piece_sums(g, k); }, [&](std::int64_t g) { merge_sums(g, sums); });
  }

  void input_gradient(const A *mean, const A *rstd, const A *sums, double count) {
    write(
        [&](std::int64_t g) {
          prepare(g, mean, rstd);
          if (sums != nullptr)
            prepare_whole(g, sums, count);
        },
        [&](std::int64_t g, std::int64_t k) { plan_.gradient(job_.x, g, k, terms(sums != nullptr), sweep_); });
  }

  void backward(const A *mean, const A *rstd, double count, A *sums) {
    each_group([&](std::int64_t g) { prepare(g, mean, rstd); });
    gather_and_write([&](std::int64_t g, std::int64_t k) { piece_sums(g, k); },
                     [&](std::int64_t g) {
                       merge_sums(g, sums);
                       prepare_whole(g, sums, count);
                     },
                     [&](std::int64_t g, std::int64_t k) { plan_.gradient(job_.x, g, k, terms(true), sweep_); });
  }

private:
  // From this size on outputs go past the caches. With what reads them next counted in, that was 10 % faster at 16 and
  // 25 MiB, and up to 40 % slower at 4 and 8 MiB, which the caches keep for the reader (4 cores, 2 MiB of L2 each).
  static constexpr std::int64_t streamed_bytes = std::int64_t{1} << 24;
  // From here on a sweep waits for memory: row by row it took a fifth to a third less there, and up to a third more in
  // the caches.
  static constexpr std::int64_t memory_bytes = std::int64_t{1} << 21;
  static Sweep sweep_of(std::int64_t bytes) {
    return bytes >= streamed_bytes ? Sweep::past : bytes >= memory_bytes ? Sweep::memory : Sweep::cached;
  }
  static std::size_t size(std::int64_t count) { return static_cast<std::size_t>(count); }

  std::int64_t channels() const { return job_.shape.channels; }
  std::int64_t units() const { return plan_.groups * plan_.chunks; }
  std::int64_t grain(std::int64_t count) const { return 1 + least_work * count / (job_.shape.size() + 1); }
  // The table: mean or sum, then M2 or the sum with xhat, of each chunk.
  double *entry(std::int64_t which, std::int64_t chunk, std::int64_t channel) {
    return table_.get() + (2 * chunk + which) * channels() + channel;
  }
  Terms<A> terms(bool whole) const {
    return {mean_, rstd_, scale_, bias_, whole ? first_ : nullptr, whole ? second_ : nullptr, job_.slope};
  }

  // piece(group, chunk) for all, then finish(group).
  template <class Piece, class Finish> void gather(const Piece &piece, const Finish &finish) {
    each_unit(piece, false);
    each_group(finish);
  }
  template <class Prepare, class Piece> void write(const Prepare &prepare, const Piece &piece) {
    each_group(prepare);
    each_unit(piece, false);
  }
  // Group by group where a group's elements stay in cache; else in two phases, the second of which begins with what the
  // worker saw last.
  template <class Read, class Finish, class Write>
  void gather_and_write(const Read &read, const Finish &finish, const Write &write) {
    if (!plan_.group_by_group(thread_count())) {
      each_unit(read, false);
      each_group(finish);
      each_unit(write, true);
      return;
    }
    parallel(plan_.groups, grain(plan_.groups), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t g = begin; g < end; ++g) {
        for (std::int64_t k = 0; k < plan_.chunks; ++k)
          read(g, k);
        finish(g);
        for (std::int64_t k = plan_.chunks - 1; k >= 0; --k)
          write(g, k);
      }
    });
  }
  template <class Piece> void each_unit(const Piece &piece, bool backwards) {
    parallel(units(), grain(units()), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t unit = backwards ? begin + end - 1 - i : i;
        piece(plan_.group_of(unit), plan_.chunk_of(unit));
      }
    });
  }
  template <class Work> void each_group(const Work &work) {
    for (std::int64_t g = 0; g < plan_.groups; ++g)
      work(g);
  }

  void piece_moments(std::int64_t g, std::int64_t k) {
    const std::int64_t c = plan_.first_channel(g);
    plan_.moments(job_.x.z, g, k, entry(0, k, c), entry(1, k, c));
  }
  void piece_sums(std::int64_t g, std::int64_t k) {
    const std::int64_t c = plan_.first_channel(g);
    plan_.sums(job_.x, g, k, terms(false), entry(0, k, c), entry(1, k, c));
  }

  // Chunk 0's place holds what was merged so far.
  void merge_moments(std::int64_t g, A *mean, A *m2) {
    const std::int64_t c = plan_.first_channel(g), count = plan_.first_channel(g + 1) - c;
    double before = plan_.chunks > 1 ? plan_.count(0) : 0;
    for (std::int64_t k = 1; k < plan_.chunks; ++k) {
      const double own = plan_.count(k);
      merge_into(count, before, own, entry(0, k, c), entry(1, k, c), entry(0, 0, c), entry(1, 0, c));
      before += own;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      mean[c + i] = static_cast<A>(entry(0, 0, c)[i]);
      m2[c + i] = static_cast<A>(entry(1, 0, c)[i]);
    }
  }
  void merge_sums(std::int64_t g, A *sums) {
    const std::int64_t c = plan_.first_channel(g), count = plan_.first_channel(g + 1) - c;
    for (std::int64_t which : {0, 1}) {
      double *__restrict total = entry(which, 0, c);
      for (std::int64_t k = 1; k < plan_.chunks; ++k) {
        const double *own = entry(which, k, c);
        for (std::int64_t i = 0; i < count; ++i)
          total[i] += own[i];
      }
      for (std::int64_t i = 0; i < count; ++i)
        sums[which * channels() + c + i] = static_cast<A>(total[i]);
    }
  }

  void prepare(std::int64_t g, const A *mean, const A *rstd) {
    A *scale = values_.get(), *bias = scale + channels();
    for (std::int64_t c = plan_.first_channel(g); c < plan_.first_channel(g + 1); ++c) {
      scale[c] = job_.weight == nullptr ? rstd[c] : job_.weight[c] * rstd[c];
      bias[c] = job_.bias == nullptr ? A(0) : job_.bias[c];
    }
    plan_.spread(g, mean, mean_);
    plan_.spread(g, rstd, rstd_);
    plan_.spread(g, scale, scale_);
    plan_.spread(g, bias, bias_);
  }
  void prepare_whole(std::int64_t g, const A *sums, double count) {
    const A divisor = static_cast<A>(std::max(count, 1.0));
    A *first = values_.get(), *second = first + channels();
    for (std::int64_t c = plan_.first_channel(g); c < plan_.first_channel(g + 1); ++c) {
      first[c] = sums[c] / divisor;
      second[c] = sums[channels() + c] / divisor;
    }
    plan_.spread(g, first, first_);
    plan_.spread(g, second, second_);
  }

  const BatchNorm<T> &job_;
  Plan plan_;
  std::unique_ptr<double[]> table_;
  std::unique_ptr<A[]> columns_, values_;
  A *mean_, *rstd_, *scale_, *bias_, *first_, *second_;
  Sweep sweep_;
};

// Planes of fewer elements than a vector has are columns of a matrix.
template <class T, class Work> void with_call(const BatchNorm<T> &job, const Work &work) {
  const BatchNormKernels<T> &kernels = batch_norm_kernels<T>();
  if (job.shape.inner < 16) {
    Call<T, ColumnsPlan<T>> call(job, kernels);
    work(call);
  } else {
    Call<T, ChannelsPlan<T>> call(job, kernels);
    work(call);
  }
}

} // namespace

template <class T> void BatchNorm<T>::moments(A *mean, A *m2) const {
  if (shape.size() == 0) {
    std::fill_n(mean, shape.channels, A(0));
    std::fill_n(m2, shape.channels, A(0));
    return;
  }
  with_call(*this, [&](auto &call) { call.moments(mean, m2); });
}

template <class T> void BatchNorm<T>::apply(const A *mean, const A *rstd) const {
  if (shape.size() > 0)
    with_call(*this, [&](auto &call) { call.apply(mean, rstd); });
}

template <class T> void BatchNorm<T>::forward(double eps, A *mean, A *m2, A *rstd) const {
  if (shape.size() > 0)
    return with_call(*this, [&](auto &call) { call.forward(eps, mean, m2, rstd); });
  moments(mean, m2);
  find_rstd<A>(shape.channels, m2, 0, eps, rstd);
}

template <class T> void BatchNorm<T>::sums(const A *mean, const A *rstd, A *sums) const {
  if (shape.size() > 0)
    with_call(*this, [&](auto &call) { call.sums(mean, rstd, sums); });
  else
    std::fill_n(sums, 2 * shape.channels, A(0));
}

template <class T> void BatchNorm<T>::input_gradient(const A *mean, const A *rstd, const A *sums, double count) const {
  if (shape.size() > 0)
    with_call(*this, [&](auto &call) { call.input_gradient(mean, rstd, sums, count); });
}

template <class T> void BatchNorm<T>::backward(const A *mean, const A *rstd, double count, A *sums) const {
  if (shape.size() > 0)
    with_call(*this, [&](auto &call) { call.backward(mean, rstd, count, sums); });
  else
    std::fill_n(sums, 2 * shape.channels, A(0));
}

template struct BatchNorm<float>;
template struct BatchNorm<double>;
template struct BatchNorm<BFloat16>;

} // namespace wholebatch
