// The three matrix products of a layer, out of one register tile: Z = H W, dH = dZ W^T and dW = H^T dZ.
//
// Every element is one chain of fused multiply-adds in ascending order of the inner index, whatever tile it falls into,
// so a result does not depend on how rows and columns are dealt out to threads.
#pragma once

#include "ahead.h"
#include "simd.h"

namespace wholebatch::WB_SET {

// Inner indices per sweep over the rows: a panel of B (depth x 32 float32: 24 KiB) stays in the first-level cache,
// beside the rows of A that pass by.
constexpr int depth_block = Ahead::slack;

// How the left operand lies: as a block of rows, of which a tile takes some; as rows of which a tile takes some columns
// (the inner index is the row); or packed, the tiles one behind the other and each by inner index (packing.h).
enum class Left { rows, columns, packed };

// Inner indices that are done in one go where addresses allow it: so the loop itself costs little.
template <Left left> constexpr int unrolled = left == Left::packed ? 4 : 1;

// The sums of a tile: of ROWS rows and NV vectors of columns. HALF: of the last vector only the lower half.
template <class T, int ROWS, int NV, bool HALF> struct Sums {
  Vec<T> vectors[ROWS][NV]; // the last ones are not used where HALF
  Half<T> halves[ROWS];     // and these nowhere else
};

// One inner index: sum += a b. Always inlined: else the compiler puts the addresses that `a` refers to on the stack,
// and reads them from there for each inner index.
template <class T, int ROWS, int NV, Left left, bool HALF, class A>
inline __attribute__((always_inline)) void multiply_add(Sums<T, ROWS, NV, HALF> &sum, const A &a, const T *b) {
  constexpr int full = NV - HALF;
  Vec<T> bk[NV];
#pragma GCC unroll 2
  for (int j = 0; j < full; ++j)
    bk[j] = load(b + j * width<T>);
  Half<T> last{};
  if constexpr (HALF)
    last = load_half(b + full * width<T>);
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
    if constexpr (left == Left::packed && !HALF) {
#pragma GCC unroll 2
      for (int j = 0; j < full; ++j)
        sum.vectors[i][j] = fma_of<T>(a(i), bk[j], sum.vectors[i][j]);
    } else {
      if constexpr (full > 0) {
        const Vec<T> ak = all(a(i));
#pragma GCC unroll 2
        for (int j = 0; j < full; ++j)
          sum.vectors[i][j] = fma<T>(ak, bk[j], sum.vectors[i][j]);
        if constexpr (HALF)
          sum.halves[i] = fma_half<T>(lower<T>(ak), last, sum.halves[i]);
      } else {
        sum.halves[i] = fma_half<T>(a(i) - Half<T>{}, last, sum.halves[i]);
      }
    }
  }
}

// c, to write to it: else the stores at the end of a tile wait for memory.
template <class T, int ROWS, int NV> inline void ask_for(T *c, std::int64_t ldc) {
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < NV; ++j)
      __builtin_prefetch(c + i * ldc + j * width<T>, 1);
}

// c (ROWS x NV vectors) over `depth`. onto: the chains begin with what is in c, unless this is the first part of them;
// else they begin at zero and what comes out is added to c. HALF: b's last vector is zero in its upper half, and so is
// what comes out.
template <class T, int ROWS, int NV, Left left, bool onto, bool HALF>
inline void tile(int depth, const T *__restrict a, std::int64_t lda, const T *__restrict b, std::int64_t ldb,
                 T *__restrict c, std::int64_t ldc, bool first, Asked &asked) {
  constexpr int W = width<T>, full = NV - HALF;
  if (onto == first) // written at the end, when it has come
    ask_for<T, ROWS, NV>(c, ldc);
  Sums<T, ROWS, NV, HALF> sum;
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < full; ++j)
      sum.vectors[i][j] = !onto || first ? Vec<T>{} : load(c + i * ldc + j * W);
    if constexpr (HALF)
      sum.halves[i] = !onto || first ? Half<T>{} : load_half(c + i * ldc + full * W);
  }
  const void *const *line = asked.next();
  const int line_step = asked.step();
  asked.advance(depth);
  const auto ask = [&] {
    __builtin_prefetch(*line, 0, 2);
    line += line_step;
  };
  if constexpr (left == Left::rows) {
    // Three rows of a share a pointer: twelve pointers are more than there are registers, and what moves between other
    // registers and these takes a port from the multiply-adds.
    constexpr int BASES = (ROWS + 2) / 3;
    const T *base[BASES];
#pragma GCC unroll 4
    for (int i = 0; i < BASES; ++i)
      base[i] = a + 3 * i * lda;
    for (int k = 0; k < depth; ++k, b += ldb) {
#pragma GCC unroll 4
      for (int i = 0; i < BASES; ++i)
        asm("" : "+r"(base[i])); // lest the compiler makes twelve of them again
      ask();
      multiply_add<T, ROWS, NV, left, HALF>(sum, [&](int i) { return base[i / 3][i % 3 * lda]; }, b);
#pragma GCC unroll 4
      for (int i = 0; i < BASES; ++i)
        ++base[i];
    }
  } else {
    const std::int64_t step = left == Left::packed ? ROWS : lda;
    int k = 0;
    for (; k + unrolled<left> <= depth; k += unrolled<left>, a += unrolled<left> * step, b += unrolled<left> * ldb)
#pragma GCC unroll 4
      for (int u = 0; u < unrolled<left>; ++u) {
        ask();
        multiply_add<T, ROWS, NV, left, HALF>(sum, [&](int i) -> const T & { return a[u * step + i]; }, b + u * ldb);
      }
    if constexpr (unrolled<left> > 1)
      for (; k < depth; ++k, a += step, b += ldb)
        multiply_add<T, ROWS, NV, left, HALF>(sum, [&](int i) -> const T & { return a[i]; }, b);
  }
  const auto put = [&](T *to, Vec<T> v) { store(to, !onto && !first ? load(to) + v : v); };
#pragma GCC unroll 12
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < full; ++j)
      put(c + i * ldc + j * W, sum.vectors[i][j]);
    if constexpr (HALF)
      put(c + i * ldc + full * W, whole<T>(sum.halves[i]));
  }
}

template <class T, int NV, Left left, bool onto, bool HALF, int ROWS = WB_TILE_ROWS>
inline void tile_of(int rows, int depth, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, T *c,
                    std::int64_t ldc, bool first, Asked &asked) {
  if constexpr (ROWS > 0) {
    if (rows == ROWS)
      tile<T, ROWS, NV, left, onto, HALF>(depth, a, lda, b, ldb, c, ldc, first, asked);
    else
      tile_of<T, NV, left, onto, HALF, ROWS - 1>(rows, depth, a, lda, b, ldb, c, ldc, first, asked);
  }
}

// f with the number of vectors that so many columns of a panel take, and whether the last is no more than half, as
// constants.
template <int NV, bool HALF> struct Width {
  static constexpr int vectors = NV;
  static constexpr bool half = HALF;
};
template <class T, class F> inline void with_width(int columns, F f) {
  constexpr int W = width<T>;
  if constexpr (has_halves)
    if ((columns - 1) % W < W / 2)
      return columns > W ? f(Width<2, true>{}) : f(Width<1, true>{});
  columns > W ? f(Width<2, false>{}) : f(Width<1, false>{});
}

// f(begin, height) for tiles of nearly equal height: a single left-over row would starve the multiply-add units.
template <class F> inline void each_tile(int rows, F f) {
  const int tiles = (rows + WB_TILE_ROWS - 1) / WB_TILE_ROWS;
  for (int t = 0; t < tiles; ++t) {
    const int begin = rows * t / tiles;
    f(begin, rows * (t + 1) / tiles - begin);
  }
}

template <class T>
void multiply(int rows, int depth, const T *a, std::int64_t lda, const T *b, int columns, T *c, std::int64_t ldc,
              const Ahead &ahead) {
  with_width<T>(columns, [&]<int NV, bool HALF>(Width<NV, HALF>) {
    constexpr int wide = NV * width<T>;
    Asked asked(ahead);
    for (int k = 0; k < depth; k += depth_block) {
      const int part = depth - k < depth_block ? depth - k : depth_block;
      each_tile(rows, [&](int begin, int height) {
        const T *panel = b + k * wide;
        T *to = c + begin * ldc;
        if (lda != 0)
          tile_of<T, NV, Left::rows, true, HALF>(height, part, a + begin * lda + k, lda, panel, wide, to, ldc, k == 0,
                                                 asked);
        else
          tile_of<T, NV, Left::packed, true, HALF>(height, part, a + begin * depth + k * height, 0, panel, wide, to,
                                                   ldc, k == 0, asked);
      });
    }
  });
}

// One tile of dW.
template <class T, int NV, bool HALF>
inline void transposed_tile(int rows, int begin, int height, const T *a, std::int64_t lda, const T *b, std::int64_t ldb,
                            T *out, bool first, Asked &asked) {
  constexpr int wide = NV * width<T>;
  if (lda != 0)
    tile_of<T, NV, Left::columns, false, HALF>(height, rows, a + begin, lda, b, ldb, out, wide, first, asked);
  else
    tile_of<T, NV, Left::packed, false, HALF>(height, rows, a + static_cast<std::int64_t>(begin) * rows, 0, b, ldb, out,
                                              wide, first, asked);
}

template <class T>
void multiply_transposed(int rows, int count, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, int columns,
                         T *out, bool first, const Ahead &ahead) {
  with_width<T>(columns, [&]<int NV, bool HALF>(Width<NV, HALF>) {
    Asked asked(ahead);
    each_tile(count, [&](int begin, int height) {
      transposed_tile<T, NV, HALF>(rows, begin, height, a, lda, b, ldb, out + begin * NV * width<T>, first, asked);
    });
  });
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

template <class T>
void transpose(const T *from, int from_wide, int rows, T *to, int to_wide, int begin, int end, int columns) {
  constexpr int W = width<T>;
  for (int k = begin; k < end;) {
    const int rest = end - k < W ? end - k : W;
    if (k % W == 0 && (rest == W || end == columns)) { // a square, with zeros for the padding
      for (int c = 0; c < rows; c += W) {
        Vec<T> square[W];
        for (int i = 0; i < W; ++i)
          square[i] = i < rest ? load(from + i * from_wide + c) : Vec<T>{};
        transpose_square<T>(square);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
          if (c + i < rows)
            store(to + (c + i) * to_wide + k, square[i]);
      }
      k += rest;
      from += rest * from_wide;
    } else { // columns of a square that another thread shares
      for (int c = 0; c < rows; ++c)
        to[c * to_wide + k] = from[c];
      ++k;
      from += from_wide;
    }
  }
}

} // namespace wholebatch::WB_SET
