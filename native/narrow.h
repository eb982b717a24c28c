// From float32 matrices to tiles of bfloat16: one tile is a square of 16 vectors of pairs, taken along the source's
// rows or across two of them, and turned where the other index is the inner one.
#pragma once

#include <algorithm>

#include "products.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// 32 numbers as bfloat16, those of x before those of y.
inline __m512i rounded(__m512 x, __m512 y) { return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(y, x)); }

inline __m512 widened(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }

// What rounding to `high` took from x; 0 where that is not finite.
inline __m512 rest(__m512 x, __m256i high) {
  constexpr int not_finite = 0x01 | 0x08 | 0x10 | 0x80; // nan, either infinity
  const __m512 back = widened(high);
  return _mm512_maskz_sub_ps(static_cast<__mmask16>(~_mm512_fpclass_ps_mask(back, not_finite)), x, back);
}

// Where the two of a pair come from two rows, they have to be brought together.
template <bool ACROSS> inline __m512i paired(__m512i x_before_y) {
  if constexpr (!ACROSS)
    return x_before_y;
  alignas(64) static constexpr std::uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), x_before_y);
}

template <bool TURNED> inline void store_tile(Vec<float> (&pairs)[16], Rounded *tile) {
  if constexpr (TURNED)
    transpose_square<float>(pairs);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    _mm512_store_ps(tile + 32 * i, pairs[i]);
}

// One tile from rows 2 i and 2 i + 1 (ACROSS: 32 x 16 numbers) or from 32 numbers of row i (16 x 32). FULL: all of them
// are there; else `rows` and `columns` of them.
template <bool ACROSS, bool TURNED, int PARTS, bool FULL>
inline void narrow_tile(int rows, int columns, const float *from, std::int64_t ld, Rounded *tile, std::int64_t low) {
  const auto mask = [](int count) { return static_cast<__mmask16>((1U << std::clamp(count, 0, 16)) - 1); };
  const __mmask16 one = mask(columns), other = mask(columns - 16);
  Vec<float> high[16], rests[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    __m512 x, y;
    const float *first = from + (ACROSS ? 2 * i : i) * ld, *second = ACROSS ? first + ld : first + 16;
    if constexpr (FULL) {
      x = _mm512_loadu_ps(first);
      y = _mm512_loadu_ps(second);
    } else { // masked loads touch nothing beyond their masks
      const auto there = [rows](int row, __mmask16 columns_there) {
        return row < rows ? columns_there : static_cast<__mmask16>(0);
      };
      x = _mm512_maskz_loadu_ps(there(ACROSS ? 2 * i : i, one), first);
      y = _mm512_maskz_loadu_ps(there(ACROSS ? 2 * i + 1 : i, ACROSS ? one : other), second);
    }
    const __m512i both = rounded(x, y);
    high[i] = _mm512_castsi512_ps(paired<ACROSS>(both));
    if constexpr (PARTS == 2)
      rests[i] = _mm512_castsi512_ps(
          paired<ACROSS>(rounded(rest(x, _mm512_castsi512_si256(both)), rest(y, _mm512_extracti64x4_epi64(both, 1)))));
  }
  store_tile<TURNED>(high, tile);
  if constexpr (PARTS == 2)
    store_tile<TURNED>(rests, tile + low);
}

// ACROSS: the inner index is that of the source's rows. LEFT: the tiles are those of a left operand.
template <bool ACROSS, bool LEFT, int PARTS>
void narrow(int outer, int inner, int steps, const float *from, std::int64_t ld, Tiles to) {
  constexpr bool turned = ACROSS == LEFT;
  const auto one = [&](int o, int s) {
    const int k = s * Tiles::inner, rows = ACROSS ? inner - k : outer - o, columns = ACROSS ? outer - o : inner - k;
    const float *corner = from + (ACROSS ? k * ld + o : o * ld + k);
    Rounded *tile = to.at(o / Tiles::outer, s);
    if (outer - o >= Tiles::outer && inner - k >= Tiles::inner)
      narrow_tile<ACROSS, turned, PARTS, true>(rows, columns, corner, ld, tile, to.low);
    else
      narrow_tile<ACROSS, turned, PARTS, false>(rows, columns, corner, ld, tile, to.low);
  };
  if constexpr (ACROSS) { // along the source's rows in either case
    for (int s = 0; s < steps; ++s)
      for (int o = 0; o < outer; o += Tiles::outer)
        one(o, s);
  } else {
    for (int o = 0; o < outer; o += Tiles::outer)
      for (int s = 0; s < steps; ++s)
        one(o, s);
  }
}

} // namespace wholebatch::WB_SET
