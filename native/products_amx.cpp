// Products of bfloat16 numbers by AMX: a square of 16 x 16 sums is a register, and takes a tile of either operand at a
// time. Operands are rounded by AVX-512 BF16.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "products.h"

namespace wholebatch {

const Products<float> &products_avx512_bf16(MatmulPrecision precision); // products_avx512_bf16.cpp

namespace WB_SET {

// All eight registers are whole tiles.
struct alignas(64) Shapes {
  std::uint8_t palette = 1, begin = 0, unused[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Shapes shapes;

void open() { _tile_loadconfig(&shapes); }
void close() { _tile_release(); } // else each switch to another thread saves 8 KiB

// Registers 0 to 3 are sums (row i, column j at 2 i + j), 4 and 5 tiles of a, 6 and 7 tiles of b.
template <int ROWS, int COLUMNS> inline void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (COLUMNS == 2)
    _tile_dpbf16ps(1, 4, 7);
  if constexpr (ROWS == 2)
    _tile_dpbf16ps(2, 5, 6);
  if constexpr (ROWS == 2 && COLUMNS == 2)
    _tile_dpbf16ps(3, 5, 7);
}
template <int ROWS> inline void load_left(const Rounded *upper, const Rounded *lower) {
  _tile_loadd(4, upper, 64);
  if constexpr (ROWS == 2)
    _tile_loadd(5, lower, 64);
}
template <int COLUMNS> inline void load_right(const Rounded *one, const Rounded *other) {
  _tile_loadd(6, one, 64);
  if constexpr (COLUMNS == 2)
    _tile_loadd(7, other, 64);
}

template <int ROWS, int COLUMNS> inline void load_sums(const float *start, std::int64_t ld) {
  if (!start) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  const std::int64_t bytes = ld * static_cast<std::int64_t>(sizeof(float));
  _tile_loadd(0, start, bytes);
  if constexpr (COLUMNS == 2)
    _tile_loadd(1, start + 16, bytes);
  if constexpr (ROWS == 2)
    _tile_loadd(2, start + 16 * ld, bytes);
  if constexpr (ROWS == 2 && COLUMNS == 2)
    _tile_loadd(3, start + 16 * ld + 16, bytes);
}
template <int ROWS, int COLUMNS> inline void store_sums(float *c, std::int64_t ld) {
  const std::int64_t bytes = ld * static_cast<std::int64_t>(sizeof(float));
  _tile_stored(0, c, bytes);
  if constexpr (COLUMNS == 2)
    _tile_stored(1, c + 16, bytes);
  if constexpr (ROWS == 2)
    _tile_stored(2, c + 16 * ld, bytes);
  if constexpr (ROWS == 2 && COLUMNS == 2)
    _tile_stored(3, c + 16 * ld + 16, bytes);
}

template <int PARTS, int ROWS, int COLUMNS>
inline void squares(int steps, const Tiles &a, const Tiles &b, const float *start, std::int64_t lds, float *c,
                    std::int64_t ldc) {
  load_sums<ROWS, COLUMNS>(start, lds);
  const Rounded *upper = a.at(0, 0), *lower = a.at(1, 0), *one = b.at(0, 0), *other = b.at(1, 0);
  for (int s = 0; s < steps; ++s) {
    load_right<COLUMNS>(one, other);
    if constexpr (PARTS == 2) {
      load_left<ROWS>(upper + a.low, lower + a.low);
      add_products<ROWS, COLUMNS>();
    }
    load_left<ROWS>(upper, lower);
    add_products<ROWS, COLUMNS>();
    if constexpr (PARTS == 2) {
      load_right<COLUMNS>(one + b.low, other + b.low);
      add_products<ROWS, COLUMNS>();
    }
    upper += Tiles::size;
    lower += Tiles::size;
    one += Tiles::size;
    other += Tiles::size;
  }
  store_sums<ROWS, COLUMNS>(c, ldc);
}

// Fewer rows than the squares have: through memory that has all of them.
template <int PARTS, int ROWS, int COLUMNS>
inline void cut_squares(int rows, int steps, const Tiles &a, const Tiles &b, const float *start, std::int64_t lds,
                        float *c, std::int64_t ldc) {
  constexpr int wide = COLUMNS * 16;
  alignas(64) float whole[ROWS * 16 * wide];
  const bool own = start && lds != 0; // one row for all is there for those beyond, too
  if (own) {
    for (int i = 0; i < rows; ++i)
      std::memcpy(whole + i * wide, start + i * lds, wide * sizeof(float));
    std::memset(whole + rows * wide, 0, (ROWS * 16 - rows) * wide * sizeof(float));
    asm volatile("" ::: "memory"); // the loads of tiles do not tell the compiler what they read
  }
  squares<PARTS, ROWS, COLUMNS>(steps, a, b, own ? whole : start, own ? wide : lds, whole, wide);
  for (int i = 0; i < rows; ++i)
    std::memcpy(c + i * ldc, whole + i * wide, wide * sizeof(float));
}

template <int PARTS, int COLUMNS>
inline void columns(int rows, int steps, const Tiles &a, const Tiles &b, const float *start, std::int64_t lds, float *c,
                    std::int64_t ldc) {
  for (int row = 0; row < rows; row += 32) {
    const Tiles left = a.from(row / 16, 0);
    const float *begin = start ? start + row * lds : nullptr;
    float *to = c + row * ldc;
    const int height = rows - row;
    if (height >= 32)
      squares<PARTS, 2, COLUMNS>(steps, left, b, begin, lds, to, ldc);
    else if (height > 16)
      cut_squares<PARTS, 2, COLUMNS>(height, steps, left, b, begin, lds, to, ldc);
    else if (height == 16)
      squares<PARTS, 1, COLUMNS>(steps, left, b, begin, lds, to, ldc);
    else
      cut_squares<PARTS, 1, COLUMNS>(height, steps, left, b, begin, lds, to, ldc);
  }
}

template <int PARTS>
void multiply(int rows, int vectors, int steps, Tiles a, Tiles b, const float *start, std::int64_t lds, float *c,
              std::int64_t ldc) {
  constexpr int most =
      16 / PARTS; // steps per sweep over the rows: a panel of b (32 KiB) stays in the first-level cache
  asm volatile("" ::: "memory");
  for (int s = 0; s < steps; s += most) {
    const int part = std::min(most, steps - s);
    const Tiles left = a.from(0, s), right = b.from(0, s);
    const float *from = s == 0 ? start : c;
    const std::int64_t ldf = s == 0 ? lds : ldc;
    if (vectors == 2)
      columns<PARTS, 2>(rows, part, left, right, from, ldf, c, ldc);
    else
      columns<PARTS, 1>(rows, part, left, right, from, ldf, c, ldc);
  }
}

template <int PARTS> Products<float> make(MatmulPrecision precision) {
  Products<float> table = products_avx512_bf16(precision);
  table.multiply = multiply<PARTS>;
  table.open = open;
  table.close = close;
  return table;
}

} // namespace WB_SET

const Products<float> &products_amx(MatmulPrecision precision) {
  static const Products<float> medium = WB_SET::make<1>(MatmulPrecision::medium),
                               high = WB_SET::make<2>(MatmulPrecision::high);
  return precision == MatmulPrecision::high ? high : medium;
}

} // namespace wholebatch
