// A left operand as the register tiles read it: tile by tile, and within a tile by inner index. One address then serves
// all of a tile's rows, which otherwise lie on as many pages.
#pragma once

#include <algorithm>

#include "gemm.h"

namespace wholebatch::WB_SET {

// A block's rows, (rows x depth), for `multiply`. Squares are transposed in registers and stored in whole vectors: what
// goes beyond a tile's rows is overwritten by what is stored next, and behind the last tile goes into a vector of
// slack.
template <class T> void pack(int rows, int depth, const T *a, std::int64_t lda, T *out) {
  constexpr int W = width<T>;
  each_tile(rows, [&](int begin, int height) {
    const T *from = a + begin * lda;
    T *to = out + static_cast<std::int64_t>(begin) * depth;
    int k = 0;
    for (; k + W <= depth; k += W)
      for (int i = (height - 1) / W * W; i >= 0; i -= W) {
        Vec<T> square[W];
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r)
          square[r] = i + r < height ? load(from + (i + r) * lda + k) : Vec<T>{};
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int r = 0; r < W; ++r)
          store(to + (k + r) * height + i, square[r]);
      }
    for (; k < depth; ++k)
      for (int i = 0; i < height; ++i)
        to[k * height + i] = from[i * lda + k];
  });
}

template <class T, int HEIGHT = WB_TILE_ROWS>
inline void pack_columns(int height, int rows, const T *a, std::int64_t lda, T *out) {
  if constexpr (HEIGHT > 0) {
    if (height != HEIGHT)
      return pack_columns<T, HEIGHT - 1>(height, rows, a, lda, out);
    for (int r = 0; r < rows; ++r)
      std::copy_n(a + r * lda, HEIGHT, out + r * HEIGHT);
  }
}

// `count` columns of a block's rows, (rows x count), for `multiply_transposed`.
template <class T> void pack_transposed(int rows, int count, const T *a, std::int64_t lda, T *out) {
  each_tile(count, [&](int begin, int height) {
    pack_columns<T>(height, rows, a + begin, lda, out + static_cast<std::int64_t>(begin) * rows);
  });
}

// A panel of a block's rows, `vectors` vectors wide, its rows one behind the other.
template <class T> void pack_panel(int rows, const T *b, std::int64_t ldb, int vectors, T *out) {
  constexpr int W = width<T>;
  for (int r = 0; r < rows; ++r, b += ldb)
    for (int v = 0; v < vectors; ++v, out += W)
      store(out, load(b + v * W));
}

} // namespace wholebatch::WB_SET
