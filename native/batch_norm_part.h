// One worker's part as Python hands it over, and the job for the kernels of its storage.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>

#include "batch_norm.h"

namespace wholebatch {

using Address = std::uintptr_t;

// As kernels/batch_norm/native.py numbers them.
enum class Storage { float32, float64, bfloat16 };

template <class T> T *at(Address address) { return reinterpret_cast<T *>(address); }

// The storage dtype, (n, channels, inner), and addresses of which those that are not there are 0.
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

// work(job), for the part's storage.
template <class Work> void by_storage(const Part &part, const Work &work) {
  if (part.storage == Storage::float32)
    work(job<float>(part));
  else if (part.storage == Storage::float64)
    work(job<double>(part));
  else
    work(job<BFloat16>(part));
}

// A call that takes a few microseconds keeps the interpreter's lock: to get it back may take longer than the call.
template <class Work> void run(const Part &part, const Work &work) {
  if (part.shape.size() < 16384)
    return by_storage(part, work);
  const nanobind::gil_scoped_release free;
  by_storage(part, work);
}

// The two sums, each to a place of its own; null: it is not wanted.
template <class A> void hand_out(std::int64_t channels, const A *sums, A *dweight, A *dbias) {
  if (dbias != nullptr)
    std::copy_n(sums, channels, dbias);
  if (dweight != nullptr)
    std::copy_n(sums + channels, channels, dweight);
}

} // namespace wholebatch
