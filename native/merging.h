// The parts of a mini-batch that ranks hold, merged in rank order in double: moments by Chan's formula, and sums.
//
// gathered[rank] is one row of doubles: the rank's count, then its vectors. wholebatch/sharing/merging.py is the twin,
// and both give the same bits: every operation here is one of torch's there, in the same order, rounded once. Source:
// Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#pragma once

#include <cstdint>
#include <vector>

namespace wholebatch {

// Rows of 1 + 2 * channels: count, mean, M2. Into out: mean, M2. Returns the count. A rank of count 0 is passed over.
template <class T> double merge_moments(const double *gathered, std::int64_t ranks, std::int64_t channels, T *out) {
  std::vector<double> merged(static_cast<std::size_t>(2 * channels), 0.0);
  double *__restrict mean = merged.data(), *__restrict m2 = mean + channels;
  double before = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    const double *row = gathered + rank * (1 + 2 * channels), own = row[0];
    const double *__restrict mean_b = row + 1, *__restrict m2_b = mean_b + channels;
    if (own == 0)
      continue;
    if (before == 0) {
      merged.assign(mean_b, mean_b + 2 * channels);
      before = own;
      continue;
    }
    const double after = before + own, share = own / after, weight = before * own / after;
    before = after;
    for (std::int64_t c = 0; c < channels; ++c) {
      const double delta = mean_b[c] - mean[c];
      mean[c] += delta * share;
      m2[c] = m2[c] + m2_b[c] + delta * delta * weight;
    }
  }
  for (std::int64_t i = 0; i < 2 * channels; ++i)
    out[i] = static_cast<T>(merged[static_cast<std::size_t>(i)]);
  return before;
}

// Rows of 1 + width. Into out: their sum, counts left out.
template <class T> void add_parts(const double *gathered, std::int64_t ranks, std::int64_t width, T *out) {
  for (std::int64_t i = 0; i < width; ++i) {
    double sum = gathered[1 + i];
    for (std::int64_t rank = 1; rank < ranks; ++rank)
      sum += gathered[rank * (1 + width) + 1 + i];
    out[i] = static_cast<T>(sum);
  }
}

} // namespace wholebatch
