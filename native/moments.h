// Merging what blocks of rows found out about their columns: Chan's formula, in block order, in double.
//
// Blocks are a function of a shard's size alone and are merged one after the other, so the result is the same bits
// whoever gathered them. Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
// sample variances", 1979.
#pragma once

#include <algorithm>
#include <cstdint>

namespace wholebatch {

// tables[block][column]: mean and M2 of blocks [begin, end), at least one; into mean and m2 of all. count(block): its
// rows, or their weights. Returns the count of all.
template <class Count>
double merge_blocks(std::int64_t begin, std::int64_t end, Count count, const double *mean_table, const double *m2_table,
                    std::int64_t columns, double *__restrict mean, double *__restrict m2) {
  std::copy_n(mean_table + begin * columns, columns, mean);
  std::copy_n(m2_table + begin * columns, columns, m2);
  double before = count(begin);
  for (std::int64_t b = begin + 1; b < end; ++b) {
    const double *__restrict mean_b = mean_table + b * columns, *__restrict m2_b = m2_table + b * columns;
    const double own = count(b), after = before + own;
    const double share = after > 0 ? own / after : 0, weight = before * share;
    before = after;
    for (std::int64_t c = 0; c < columns; ++c) {
      const double delta = mean_b[c] - mean[c];
      mean[c] += delta * share;
      m2[c] += m2_b[c] + delta * delta * weight;
    }
  }
  return before;
}

// The sum of rows [begin, end) of a table; zeros of none.
inline void add_rows(std::int64_t begin, std::int64_t end, const double *table, std::int64_t columns,
                     double *__restrict sum) {
  if (begin == end)
    std::fill_n(sum, columns, 0.0);
  else
    std::copy_n(table + begin * columns, columns, sum);
  for (std::int64_t b = begin + 1; b < end; ++b)
    for (std::int64_t c = 0; c < columns; ++c)
      sum[c] += table[b * columns + c];
}

} // namespace wholebatch
