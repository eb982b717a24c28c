// What Python sees of batch norm: six functions over addresses, which kernels/batch_norm/native.py takes from tensors
// that it has checked. An address costs far less to hand over than an array.
#include <nanobind/nanobind.h>

#include "batch_norm.h"
#include "huge_pages.h"
#include "parallel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

namespace {

using Address = std::uintptr_t;

enum class Storage { float32, float64, bfloat16 };

template <class T> T *at(Address address) { return reinterpret_cast<T *>(address); }

// What all six take: the storage dtype, (n, channels, inner), and addresses of which those that are not there are 0.
struct Part {
  Storage storage;
  Shape shape;
  Address z, residual, g, out, dresidual, weight, bias;
  double slope;
};

template <class T> BatchNorm<T> job(const Part &p) {
  using A = Accumulator<T>;
  return {p.shape,
          {at<const T>(p.z), at<const T>(p.residual), at<const T>(p.g), at<T>(p.out), at<T>(p.dresidual)},
          at<const A>(p.weight),
          at<const A>(p.bias),
          static_cast<A>(p.slope)};
}

// A call that takes a few microseconds keeps the interpreter's lock: to get it back may take longer than the call.
template <class Work> void run(const Part &part, const Work &work) {
  const auto by_storage = [&] {
    if (part.storage == Storage::float32)
      work(job<float>(part));
    else if (part.storage == Storage::float64)
      work(job<double>(part));
    else
      work(job<BFloat16>(part));
  };
  if (part.shape.size() < 16384)
    return by_storage();
  const nb::gil_scoped_release free;
  by_storage();
}

} // namespace

void bind_batch_norm(nb::module_ &m) {
  m.def("advise_huge_pages", &advise_huge_pages);
  m.def("use_threads", [](Address parallel_for, Address count_threads) {
    use_threads(reinterpret_cast<ParallelFor>(parallel_for), reinterpret_cast<CountThreads>(count_threads));
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
  m.def("batch_norm_forward", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                                 Address residual, Address weight, Address bias, double slope, Address y, double eps,
                                 Address mean, Address m2, Address rstd) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, 0, y, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.forward(static_cast<A>(eps), at<A>(mean), at<A>(m2), at<A>(rstd));
    });
  });
  m.def("batch_norm_sums", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                              Address residual, Address weight, Address bias, double slope, Address g, Address mean,
                              Address rstd, Address sums) {
    const Part part{static_cast<Storage>(storage), {n, channels, inner}, z, residual, g, 0, 0, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.sums(at<const A>(mean), at<const A>(rstd), at<A>(sums));
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
  m.def("batch_norm_backward", [](int storage, std::int64_t n, std::int64_t channels, std::int64_t inner, Address z,
                                  Address residual, Address weight, Address bias, double slope, Address g, Address mean,
                                  Address rstd, Address sums, double count, Address dz, Address dresidual) {
    const Part part{
        static_cast<Storage>(storage), {n, channels, inner}, z, residual, g, dz, dresidual, weight, bias, slope};
    run(part, [&]<class T>(const BatchNorm<T> &job) {
      using A = Accumulator<T>;
      job.backward(at<const A>(mean), at<const A>(rstd), count, at<A>(sums));
    });
  });
}

} // namespace wholebatch
