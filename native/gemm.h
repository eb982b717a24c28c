// The three matrix products of a layer, out of one register tile: Z = H W, dH = dZ W^T and dW = H^T dZ.
//
// Every element is one chain of fused multiply-adds in ascending order of the inner index, whatever tile it falls into,
// so a result does not depend on how rows and columns are dealt out to threads.
#pragma once

#include "simd.h"

namespace wholebatch::WB_SET {

// Inner indices per sweep over the rows: a panel of B (depth x 32 float32: 24 KiB) stays in the first-level cache,
// beside the rows of A that pass by.
constexpr int depth_block = 192;

// c (ROWS x NV vectors) over `depth`. TRANSPOSED: a's rows are the inner index, and b is row-major instead of packed.
template <class T, int ROWS, int NV, bool TRANSPOSED>
inline void tile(int depth, const T *__restrict a, std::int64_t lda, const T *__restrict b, std::int64_t ldb,
                 T *__restrict c, std::int64_t ldc, bool first) {
  constexpr int W = width<T>;
  Vec<T> sum[ROWS][NV];
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      sum[i][j] = TRANSPOSED || first ? Vec<T>{} : load(c + i * ldc + j * W);
  // Three rows of a share a pointer: twelve pointers are more than there are registers, and what moves between other
  // registers and these takes a port from the multiply-adds.
  constexpr int BASES = (ROWS + 2) / 3;
  const T *base[BASES];
#pragma GCC unroll 4
  for (int i = 0; i < BASES; ++i)
    base[i] = a + 3 * i * lda;
  for (int k = 0; k < depth; ++k) {
    if constexpr (!TRANSPOSED) {
#pragma GCC unroll 4
      for (int i = 0; i < BASES; ++i)
        asm("" : "+r"(base[i])); // lest the compiler makes twelve of them again
    }
    Vec<T> bk[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      bk[j] = load(b + j * W);
#pragma GCC unroll 12
    for (int i = 0; i < ROWS; ++i) {
      const Vec<T> ak = all(TRANSPOSED ? a[i] : base[i / 3][i % 3 * lda]);
#pragma GCC unroll 2
      for (int j = 0; j < NV; ++j)
        sum[i][j] = fma<T>(ak, bk[j], sum[i][j]);
    }
    b += ldb;
    if constexpr (TRANSPOSED) {
      a += lda;
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < BASES; ++i)
        ++base[i];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j) {
      T *to = c + i * ldc + j * W;
      store(to, TRANSPOSED && !first ? load(to) + sum[i][j] : sum[i][j]);
    }
}

template <class T, int NV, bool TRANSPOSED, int ROWS = WB_TILE_ROWS>
inline void tile_of(int rows, int depth, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, T *c,
                    std::int64_t ldc, bool first) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      tile<T, ROWS, NV, TRANSPOSED>(depth, a, lda, b, ldb, c, ldc, first);
    else
      tile_of<T, NV, TRANSPOSED, ROWS - 1>(rows, depth, a, lda, b, ldb, c, ldc, first);
  }
}

// f(begin, height) for tiles of nearly equal height: a single left-over row would starve the multiply-add units.
template <class F> inline void each_tile(int rows, F f) {
  const int tiles = (rows + WB_TILE_ROWS - 1) / WB_TILE_ROWS;
  for (int t = 0; t < tiles; ++t) {
    const int begin = rows * t / tiles;
    f(begin, rows * (t + 1) / tiles - begin);
  }
}

// All rows of one panel.
template <class T, int NV, bool TRANSPOSED>
inline void panel(int rows, int depth, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, T *c,
                  std::int64_t ldc, bool first) {
  each_tile(rows, [&](int begin, int height) {
    tile_of<T, NV, TRANSPOSED>(height, depth, a + (TRANSPOSED ? begin : begin * lda), lda, b, ldb, c + begin * ldc, ldc,
                               first);
  });
}

template <class T>
void multiply(int rows, int depth, const T *a, std::int64_t lda, const T *b, int vectors, T *c, std::int64_t ldc) {
  for (int k = 0; k < depth; k += depth_block) {
    const int part = depth - k < depth_block ? depth - k : depth_block;
    const std::int64_t ldb = vectors * width<T>;
    if (vectors == 2)
      panel<T, 2, false>(rows, part, a + k, lda, b + k * ldb, ldb, c, ldc, k == 0);
    else
      panel<T, 1, false>(rows, part, a + k, lda, b + k * ldb, ldb, c, ldc, k == 0);
  }
}

template <class T>
void multiply_transposed(int rows, int count, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, int vectors,
                         T *out, bool first) {
  if (vectors == 2)
    panel<T, 2, true>(count, rows, a, lda, b, ldb, out, 2 * width<T>, first);
  else
    panel<T, 1, true>(count, rows, a, lda, b, ldb, out, width<T>, first);
}

// Between a panel and rows of weights as torch has them, (outputs, inputs), in either direction: `count` outputs.
template <class T> void exchange(bool to_panel, T *rows, std::int64_t inputs, int count, T *panel, int wide) {
  constexpr int W = width<T>;
  std::int64_t k = 0;
  for (; k + W <= inputs; k += W)
    for (int o = 0; o < count; o += W) {
      Vec<T> square[W];
      if (to_panel) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          square[i] = o + i < count ? load(rows + (o + i) * inputs + k) : Vec<T>{};
        transpose_square<T>(square);
        for (int i = 0; i < W; ++i)
          store(panel + (k + i) * wide + o, square[i]);
      } else {
        for (int i = 0; i < W; ++i)
          square[i] = load(panel + (k + i) * wide + o);
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          if (o + i < count)
            store(rows + (o + i) * inputs + k, square[i]);
      }
    }
  for (; k < inputs; ++k)
    for (int o = 0; o < count; ++o)
      (to_panel ? panel[k * wide + o] : rows[o * inputs + k]) = to_panel ? rows[o * inputs + k] : panel[k * wide + o];
}

// Where column c of a matrix of panels begins, and how many vectors its panel has.
struct PanelAt {
  std::int64_t offset;
  int wide, within;
};
template <class T> inline PanelAt panel_at(int column, int columns, std::int64_t depth) {
  constexpr int W = width<T>, N = 2 * W;
  const int padded = (columns + W - 1) / W * W;
  const int p = column / N;
  return {static_cast<std::int64_t>(p) * N * depth, padded - p * N < N ? W : N, column - p * N};
}

template <class T>
void transpose(const T *forward, std::int64_t depth, int outputs, int output, T *back, int inputs, int begin, int end) {
  constexpr int W = width<T>, N = 2 * W;
  const PanelAt source = panel_at<T>(output, outputs, depth);
  const T *panel = forward + source.offset;
  const int stop = output + N < outputs ? output + N : outputs;
  for (int k = begin; k < end;) {
    const PanelAt to = panel_at<T>(k, inputs, outputs);
    T *column = back + to.offset + to.within;
    const int rest = end - k < W ? end - k : W;
    if (k % W == 0 && (rest == W || end == inputs)) { // a square, with zeros for the padding of inputs
      for (int c = output; c < stop; c += W) {
        Vec<T> square[W];
        for (int i = 0; i < W; ++i)
          square[i] = i < rest ? load(panel + (k + i) * static_cast<std::int64_t>(source.wide) + c - output) : Vec<T>{};
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          if (c + i < stop)
            store(column + static_cast<std::int64_t>(c + i) * to.wide, square[i]);
      }
      k += rest;
    } else { // columns of a square that another thread shares
      for (int c = output; c < stop; ++c)
        column[static_cast<std::int64_t>(c) * to.wide] = panel[k * static_cast<std::int64_t>(source.wide) + c - output];
      ++k;
    }
  }
}

} // namespace wholebatch::WB_SET
