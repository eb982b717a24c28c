// Merging what blocks of rows found out about their columns: Chan's formula, in block order, in double.
//
// Blocks are a function of the mini-batch's size alone and are merged one after the other, so the result is the same
// bits whoever gathered them. Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
// computing sample variances", 1979.
#pragma once

#include <cstdint>

namespace wholebatch {

// The bounds of the fixed blocks of a mini-batch of `rows`. 128 rows of a layer's input stay in the second-level cache
// while they are multiplied; blocks of nearly equal size leave no short last one.
struct Blocks {
  static constexpr std::int64_t most = 128;
  std::int64_t rows, count;
  explicit Blocks(std::int64_t rows) : rows(rows), count((rows + most - 1) / most) {}
  std::int64_t begin(std::int64_t block) const { return rows * block / count; }
  // Runs of whole blocks, nearly equally many in each.
  std::int64_t group_begin(std::int64_t group, std::int64_t groups) const { return count * group / groups; }
  std::int64_t group_of(std::int64_t block, std::int64_t groups) const { return ((block + 1) * groups - 1) / count; }
};

// tables[block][column]: mean and M2 of each block; into mean and m2 of all. count(block): its rows, or their weights.
template <class Count>
void merge_moments(const Blocks &blocks, Count count, const double *mean_table, const double *m2_table,
                   std::int64_t columns, double *__restrict mean, double *__restrict m2) {
  for (std::int64_t c = 0; c < columns; ++c) {
    mean[c] = mean_table[c];
    m2[c] = m2_table[c];
  }
  double before = count(0);
  for (std::int64_t b = 1; b < blocks.count; ++b) {
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
}

inline void merge_sums(const Blocks &blocks, const double *table, std::int64_t columns, double *__restrict sum) {
  for (std::int64_t c = 0; c < columns; ++c)
    sum[c] = table[c];
  for (std::int64_t b = 1; b < blocks.count; ++b)
    for (std::int64_t c = 0; c < columns; ++c)
      sum[c] += table[b * columns + c];
}

} // namespace wholebatch
