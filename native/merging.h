// The parts of a mini-batch that ranks hold, merged in rank order in double: moments by Chan's formula, and sums.
//
// gathered[rank] is one row of doubles: the rank's count, then its vectors. wholebatch/sharing/merging.py is the twin,
// and both give the same bits: every operation here is one of torch's there, in the same order, rounded once.
// Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#pragma once

#include <cstdint>

namespace wholebatch {

// Rows of 1 + 2 * channels: count, mean, M2. Returns the count. A rank of count 0 is passed over. For float and double.
template <class T>
double merge_moments(const double *gathered, std::int64_t ranks, std::int64_t channels, T *mean, T *m2);

// Rows of 1 + width. Into out: their sum, counts left out. For float and double.
template <class T> void add_parts(const double *gathered, std::int64_t ranks, std::int64_t width, T *out);

} // namespace wholebatch
