#include "merging.h"

#include <algorithm>

namespace wholebatch {

namespace {

// Channels that are merged over all ranks before the next ones are: their merged moments stay in the first-level cache.
constexpr std::int64_t block = 256;

} // namespace

template <class T>
double merge_moments(const double *gathered, std::int64_t ranks, std::int64_t channels, T *mean_out, T *m2_out) {
  double mean[block], m2[block], count = 0;
  for (std::int64_t rank = 0; rank < ranks; ++rank)
    count += gathered[rank * (1 + 2 * channels)];
  for (std::int64_t begin = 0; begin < channels; begin += block) {
    const std::int64_t here = std::min(block, channels - begin);
    double before = 0;
    std::fill_n(mean, here, 0.0);
    std::fill_n(m2, here, 0.0);
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      const double *row = gathered + rank * (1 + 2 * channels), own = row[0];
      const double *mean_b = row + 1 + begin, *m2_b = mean_b + channels;
      if (own == 0)
        continue;
      if (before == 0) { // exactly this part, also where it is infinite
        std::copy_n(mean_b, here, mean);
        std::copy_n(m2_b, here, m2);
        before = own;
        continue;
      }
      const double after = before + own, share = own / after, weight = before * own / after;
      before = after;
      for (std::int64_t c = 0; c < here; ++c) {
        const double delta = mean_b[c] - mean[c];
        mean[c] += delta * share;
        m2[c] = m2[c] + m2_b[c] + delta * delta * weight;
      }
    }
    for (std::int64_t c = 0; c < here; ++c) {
      mean_out[begin + c] = static_cast<T>(mean[c]);
      m2_out[begin + c] = static_cast<T>(m2[c]);
    }
  }
  return count;
}

template <class T> void add_parts(const double *gathered, std::int64_t ranks, std::int64_t width, T *out) {
  double sum[block];
  for (std::int64_t begin = 0; begin < width; begin += block) {
    const std::int64_t here = std::min(block, width - begin);
    std::copy_n(gathered + 1 + begin, here, sum);
    for (std::int64_t rank = 1; rank < ranks; ++rank) {
      const double *part = gathered + rank * (1 + width) + 1 + begin;
      for (std::int64_t i = 0; i < here; ++i)
        sum[i] += part[i];
    }
    for (std::int64_t i = 0; i < here; ++i)
      out[begin + i] = static_cast<T>(sum[i]);
  }
}

template double merge_moments(const double *, std::int64_t, std::int64_t, float *, float *);
template double merge_moments(const double *, std::int64_t, std::int64_t, double *, double *);
template void add_parts(const double *, std::int64_t, std::int64_t, float *);
template void add_parts(const double *, std::int64_t, std::int64_t, double *);

} // namespace wholebatch
