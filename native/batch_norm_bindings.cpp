// What Python sees of batch norm: functions over addresses, which kernels/batch_norm/native.py takes from tensors
// that it has checked. An address costs far less to hand over than an array.
#include <nanobind/nanobind.h>

#include <vector>

#include "batch_norm_part.h"
#include "batch_norm_statistics.h"
#include "huge_pages.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

void bind_batch_norm(nb::module_ &m) {
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("use_threads", [](Address parallel_for, Address count_threads) {
    use_threads(reinterpret_cast<ParallelFor>(parallel_for), reinterpret_cast<CountThreads>(count_threads));
  });
  m.def("batch_norm_rstd", [](bool wide, std::int64_t channels, Address m2, double count, double eps, Address rstd) {
    if (wide)
      find_rstd(channels, at<const double>(m2), count, eps, at<double>(rstd));
    else
      find_rstd(channels, at<const float>(m2), count, eps, at<float>(rstd));
  });
  m.def("move_running",
        [](bool wide, std::int64_t channels, Address to, double divisor, double momentum, Address running) {
          if (wide)
            move_towards(channels, at<const double>(to), divisor, momentum, at<double>(running));
          else
            move_towards(channels, at<const float>(to), static_cast<float>(divisor), static_cast<float>(momentum),
                         at<float>(running));
        });
  m.def("batch_norm_moments", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                                 Address mean, Address m2) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, 0, 0, 0, 0, 0, 0, 1};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.moments(at<A>(mean), at<A>(m2));
    });
  });
  m.def("batch_norm_apply", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                               Address residual, Address weight, Address bias, double slope, Address y, Address mean,
                               Address rstd) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, 0, y, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.apply(at<const A>(mean), at<const A>(rstd));
    });
  });
  // Moments, apply and what follows, in one call: statistics is (3, channels), mean, M2 and rstd.
  m.def("batch_norm_forward", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                                 Address residual, Address weight, Address bias, double slope, Address y, double eps,
                                 Address statistics, Address running_mean, Address running_var, double momentum) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, 0, y, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      A *mean = at<A>(statistics), *m2 = mean + channels;
      job.forward(eps, mean, m2, m2 + channels);
      move_both<A>(channels, mean, static_cast<double>(part.shape.count()), static_cast<A>(momentum),
                   at<A>(running_mean), at<A>(running_var));
    });
  });
  m.def("batch_norm_sums", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                              Address residual, Address weight, Address bias, double slope, Address g, Address mean,
                              Address rstd, Address sums, Address dweight, Address dbias) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, g, 0, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.sums(at<const A>(mean), at<const A>(rstd), at<A>(sums));
      hand_out(channels, at<const A>(sums), at<A>(dweight), at<A>(dbias));
    });
  });
  m.def("batch_norm_input_gradient",
        [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z, Address residual,
           Address weight, Address bias, double slope, Address g, Address mean, Address rstd, Address sums,
           double count, Address dz, Address dresidual) {
          const Part part{
              static_cast<Storage>(storage), {n, channels, inner}, z, residual, g, dz, dresidual, weight, bias, slope};
          run(part, [&]<class T>(const BatchNorm<T> &job) {
            using A = Accumulator<T>;
            job.input_gradient(at<const A>(mean), at<const A>(rstd), at<const A>(sums), count);
          });
        });
  // The rest of it where others share the mini-batch: statistics holds mean and M2 of the whole, count its elements.
  m.def("batch_norm_finish", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                                Address residual, Address weight, Address bias, double slope, Address y, double eps,
                                Address statistics, double count, Address running_mean, Address running_var,
                                double momentum) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, 0, y, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      A *mean = at<A>(statistics), *m2 = mean + channels, *rstd = m2 + channels;
      find_rstd<A>(channels, m2, count, eps, rstd);
      job.apply(mean, rstd);
      move_both<A>(channels, mean, count, static_cast<A>(momentum), at<A>(running_mean), at<A>(running_var));
    });
  });
  // Sums and input gradient in one call; the sums go where they are wanted.
  m.def("batch_norm_backward",
        [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z, Address residual,
           Address weight, Address bias, double slope, Address g, Address mean, Address rstd, double count, Address dz,
           Address dresidual, Address dweight, Address dbias) {
          const Part part{
              static_cast<Storage>(storage), {n, channels, inner}, z, residual, g, dz, dresidual, weight, bias, slope};
          run(part, [&]<class T>(const BatchNorm<T> &job) {
            using A = Accumulator<T>;
            std::vector<A> sums(static_cast<std::size_t>(2 * channels));
            job.backward(at<const A>(mean), at<const A>(rstd), count, sums.data());
            hand_out<A>(channels, sums.data(), at<A>(dweight), at<A>(dbias));
          });
        });
}

} // namespace wholebatch
