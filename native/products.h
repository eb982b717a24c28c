// Matrix products of operands that were rounded to bfloat16, summed in float32: what the step hands to the unit of the
// processor that multiplies so.
//
// bfloat16 is float32 without its last 16 bits: 8 of the 24 bits of a number's precision. Rounding is to the nearest,
// to the even one of two; infinities and nan stay, subnormal numbers may become 0. In "high" an operand is the sum of
// two such numbers, its rounding and that of what rounding took: hi * hi + hi * lo + lo * hi has about 16 bits. Where a
// number is not finite, or rounds to infinity, its lo is 0.
//
// An operand lies in tiles of 1 KiB, 16 rows of 32 numbers, which both units read in order: of a left operand, 16 of
// its rows with 32 inner indices each; of a right one, 16 of its columns, where row i of the tile has the inner indices
// 2 i and 2 i + 1 of each column side by side. What is missing in a tile at the edge of a matrix is 0.
#pragma once

#include <cstdint>

namespace wholebatch {

// torch.set_float32_matmul_precision's names.
enum class MatmulPrecision { highest, high, medium };

using Rounded = std::uint16_t; // the bits of a bfloat16

// An operand: its tile of outer indices [16 o, 16 o + 16) and inner ones [32 s, 32 s + 32) is at(o, s).
struct Tiles {
  static constexpr int outer = 16, inner = 32, size = outer * inner;
  Rounded *first;
  std::int64_t steps; // along the inner index, from one outer index to the next
  std::int64_t low;   // from a tile to that of its second numbers
  Rounded *at(std::int64_t o, std::int64_t s) const { return first + (o * steps + s) * size; }
  Tiles from(std::int64_t o, std::int64_t s) const { return {at(o, s), steps, low}; }
};
// Steps of so many inner indices.
constexpr int steps_of(int inner) { return (inner + Tiles::inner - 1) / Tiles::inner; }

// Rounds a matrix into tiles: all of `outer` indices, and `steps` tiles of inner indices, of which there are `inner`.
template <class T> using Narrow = void (*)(int outer, int inner, int steps, const T *from, std::int64_t ld, Tiles to);

template <class T> struct Products {
  // By which index of the source is the inner one, that of its columns or that of its rows.
  Narrow<T> left_by_columns, left_by_rows, right_by_columns, right_by_rows;
  // c (rows x vectors of 16 columns) = start + a b, of so many steps. start: rows lds apart (0: the same for all of
  // them), or null for zeros; it may be c.
  void (*multiply)(int rows, int vectors, int steps, Tiles a, Tiles b, const T *start, std::int64_t lds, T *c,
                   std::int64_t ldc);
  // Around all products of a thread: what the unit needs, and nothing of it left behind.
  void (*open)();
  void (*close)();
};

// On this thread, while one of these is there.
template <class T> class Opened {
public:
  explicit Opened(const Products<T> *products) : products_(products) {
    if (products_)
      products_->open();
  }
  ~Opened() {
    if (products_)
      products_->close();
  }
  Opened(const Opened &) = delete;
  Opened &operator=(const Opened &) = delete;

private:
  const Products<T> *products_;
};

} // namespace wholebatch
