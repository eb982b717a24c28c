// Philox4x32-10 for dropout: the word of an element is a function of where it stands (see feedforward/dropout.py, its
// twin).
//
// Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "simd.h"

namespace wholebatch::WB_SET {

// Random words of columns [4 * quad, 4 * (quad + count)) of a row into words[4 * count].
inline void philox_row(std::uint32_t quad, int count, std::uint32_t row, std::uint32_t layer, std::uint32_t step,
                       std::uint64_t seed, std::uint32_t *__restrict words) {
  for (int i = 0; i < count; ++i) {
    std::uint32_t c0 = quad + static_cast<std::uint32_t>(i), c1 = row, c2 = layer, c3 = step;
    std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c0, p1 = std::uint64_t{0xCD9E8D57} * c2;
      c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
      c1 = static_cast<std::uint32_t>(p1);
      c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
      c3 = static_cast<std::uint32_t>(p0);
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    words[4 * i] = c0;
    words[4 * i + 1] = c1;
    words[4 * i + 2] = c2;
    words[4 * i + 3] = c3;
  }
}

} // namespace wholebatch::WB_SET
