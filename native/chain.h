// The most multiply-adds that this build's vectors can do: chains that live in registers and depend on nothing else.
#pragma once

#include "simd.h"

namespace wholebatch::WB_SET {

// As many chains as the products' register tile has sums: more than the units' latency needs. values holds the factor
// and the addend, which the compiler must not know, and takes the sum of the ends, which must not be left out. Returns
// the operations done, two for each multiply-add.
template <class T> double fma_chain(std::int64_t rounds, T *values) {
  constexpr int chains = 2 * WB_TILE_ROWS;
  const Vec<T> factor = all(values[0]), addend = all(values[1]);
  Vec<T> sum[chains];
#pragma GCC unroll 24
  for (int i = 0; i < chains; ++i)
    sum[i] = all(static_cast<T>(i));
  for (std::int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int i = 0; i < chains; ++i)
      sum[i] = fma<T>(sum[i], factor, addend);
  }
  Vec<T> end{};
  for (int i = 0; i < chains; ++i)
    end += sum[i];
  values[2] = sum_lanes<T>(end);
  return 2.0 * chains * width<T> * static_cast<double>(rounds);
}

} // namespace wholebatch::WB_SET
