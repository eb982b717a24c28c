// Products of bfloat16 numbers by AVX-512 BF16: pairs of products are added to 16 sums at a time.
#include "narrow.h"

namespace wholebatch {

namespace WB_SET {

constexpr int tile_rows = 8; // two register tiles for the 16 rows of a tile: 8 x 2 sums

template <int PARTS, int NV>
inline void tile(int rows, int steps, const Rounded *a, std::int64_t a_low, const Tiles &b, const float *start,
                 std::int64_t lds, float *c, std::int64_t ldc) {
  __m512 sum[tile_rows][NV];
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      sum[i][j] = start && i < rows ? _mm512_loadu_ps(start + i * lds + j * 16) : _mm512_setzero_ps();
  const auto pairs = [](const Rounded *p) {
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(*reinterpret_cast<const std::int32_t *>(p)));
  };
  const auto vector = [](const Rounded *p) { return reinterpret_cast<__m512bh>(_mm512_load_si512(p)); };
  for (int s = 0; s < steps; ++s, a += Tiles::size) {
    const Rounded *left = a, *right[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      right[j] = b.at(j, s);
    for (int k = 0; k < Tiles::inner; k += 2, left += 2) {
      __m512bh high[NV], low[NV];
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j) {
        high[j] = vector(right[j] + k * Tiles::outer);
        if constexpr (PARTS == 2)
          low[j] = vector(right[j] + b.low + k * Tiles::outer);
      }
#pragma GCC unroll 8
      for (int i = 0; i < tile_rows; ++i) {
        const __m512bh ah = pairs(left + i * Tiles::inner);
        if constexpr (PARTS == 2) {
          const __m512bh al = pairs(left + a_low + i * Tiles::inner);
#pragma GCC unroll 2
          for (int j = 0; j < NV; ++j) {
            sum[i][j] = _mm512_dpbf16_ps(sum[i][j], al, high[j]);
            sum[i][j] = _mm512_dpbf16_ps(sum[i][j], ah, low[j]);
          }
        }
#pragma GCC unroll 2
        for (int j = 0; j < NV; ++j)
          sum[i][j] = _mm512_dpbf16_ps(sum[i][j], ah, high[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < tile_rows; ++i)
    if (i < rows)
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j)
        _mm512_storeu_ps(c + i * ldc + j * 16, sum[i][j]);
}

template <int PARTS>
void multiply(int rows, int vectors, int steps, Tiles a, Tiles b, const float *start, std::int64_t lds, float *c,
              std::int64_t ldc) {
  constexpr int most =
      16 / PARTS; // steps per sweep over the rows: a panel of b (32 KiB) stays in the first-level cache
  for (int s = 0; s < steps; s += most) {
    const int part = std::min(most, steps - s);
    const Tiles right = b.from(0, s);
    const float *from = s == 0 ? start : c;
    const std::int64_t ldf = s == 0 ? lds : ldc;
    for (int row = 0; row < rows; row += tile_rows) {
      const Rounded *left = a.at(row / Tiles::outer, s) + row % Tiles::outer * Tiles::inner;
      const float *begin = from ? from + row * ldf : nullptr;
      const int height = std::min(tile_rows, rows - row);
      if (vectors == 2)
        tile<PARTS, 2>(height, part, left, a.low, right, begin, ldf, c + row * ldc, ldc);
      else
        tile<PARTS, 1>(height, part, left, a.low, right, begin, ldf, c + row * ldc, ldc);
    }
  }
}

template <int PARTS>
constexpr Products<float> table{narrow<false, true, PARTS>,
                                narrow<true, true, PARTS>,
                                narrow<false, false, PARTS>,
                                narrow<true, false, PARTS>,
                                multiply<PARTS>,
                                [] {},
                                [] {}};

} // namespace WB_SET

const Products<float> &products_avx512_bf16(MatmulPrecision precision) {
  return precision == MatmulPrecision::high ? WB_SET::table<2> : WB_SET::table<1>;
}

} // namespace wholebatch
