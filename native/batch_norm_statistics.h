// What is done on vectors of one number for each channel, between the passes over a tensor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace wholebatch {

// rstd = 1 / sqrt(M2 / count + eps); of no elements at all, as if the variance were 0.
template <class A>
void find_rstd(std::int64_t channels, const A *__restrict m2, double count, double eps, A *__restrict rstd) {
  const A divisor = static_cast<A>(std::max(count, 1.0)), added = static_cast<A>(eps);
  for (std::int64_t c = 0; c < channels; ++c)
    rstd[c] = A(1) / std::sqrt(m2[c] / divisor + added);
}

// As torch's lerp: from the nearer end.
template <class A>
void move_towards(std::int64_t channels, const A *__restrict to, A divisor, A momentum, A *__restrict running) {
  for (std::int64_t c = 0; c < channels; ++c) {
    const A target = to[c] / divisor, way = target - running[c];
    running[c] = momentum < A(0.5) ? running[c] + momentum * way : target - way * (A(1) - momentum);
  }
}

// By mean and M2, one behind the other; null: there is none to move.
template <class A>
void move_both(std::int64_t channels, const A *mean, double count, A momentum, A *running_mean, A *running_var) {
  if (running_mean != nullptr && count > 1)
    move_towards(channels, mean, A(1), momentum, running_mean);
  if (running_var != nullptr && count > 1)
    move_towards(channels, mean + channels, static_cast<A>(count - 1), momentum, running_var);
}

} // namespace wholebatch
