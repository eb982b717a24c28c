// A training step's two calls, forward and backward, alone or with the ranks of this host: what they are given as
// tensors, and what the forward call keeps for the backward one.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>

#include "batch_norm_part.h"
#include "borrowed.h"

namespace wholebatch {

// What a forward call found: mean, M2 and rstd of the whole mini-batch, and room for the two sums backward that other
// ranks read while they are waited for.
class Found {
public:
  Found(std::int64_t channels, bool wide, double count)
      : channels(channels), wide(wide), count(count),
        memory_(std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(5 * channels))) {}

  std::int64_t channels;
  bool wide;    // double
  double count; // elements of a channel in the whole mini-batch

  template <class A> A *mean() const { return reinterpret_cast<A *>(memory_.get()); }
  template <class A> A *m2() const { return mean<A>() + channels; }
  template <class A> A *rstd() const { return mean<A>() + 2 * channels; }
  template <class A> A *sums() const { return mean<A>() + 3 * channels; }

private:
  std::unique_ptr<double[]> memory_; // for either accumulator
};

// The tensors of a forward call. None where one is not there; without y nothing is written.
struct Forward {
  nanobind::handle z, weight, bias, residual, y, running_mean, running_var, counter;
};

// What they are, for the kernels.
struct Step {
  Part part;
  bool wide; // double is computed with
  std::int64_t bytes;
  Address running_mean, running_var;
  std::int64_t *counter;
};

// Whether the tensors fit together and lie in memory as the kernels take them; else nothing is said about `out`. Throws
// std::logic_error where memory for an output is not as z's.
bool read(const Forward &given, Step &out);

// The tensors of a backward call. out: dz. None where one is not there or not wanted.
struct Backward {
  nanobind::handle g, z, weight, bias, residual, dz, dresidual, dweight, dbias;
};

struct StepBack {
  Part part;
  Address dweight, dbias;
};

// The same for these.
bool read(const Backward &given, StepBack &out);

} // namespace wholebatch
