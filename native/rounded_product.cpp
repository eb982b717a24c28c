#include "rounded_product.h"

#include <algorithm>

#include "buffer.h"

namespace wholebatch {

namespace {

// Room for an operand, of just its size, so that a sanitizer sees what goes beyond.
struct Operand {
  Operand(int outer, int inner, int parts)
      : steps(steps_of(inner)), count(static_cast<std::int64_t>(outer + Tiles::outer - 1) / Tiles::outer * steps),
        memory(static_cast<std::size_t>(count * Tiles::size * parts)) {}
  Tiles tiles() { return {memory.get(), steps, count * Tiles::size}; }
  int steps;
  std::int64_t count;
  Buffer<Rounded> memory;
};

} // namespace

void rounded_product(const Products<float> &products, int parts, bool turned, int rows, int inner, int columns,
                     const float *a, const float *b, const float *start, float *out) {
  const Opened<float> opened(&products);
  const int steps = steps_of(inner), vectors = (columns + Tiles::outer - 1) / Tiles::outer,
            padded = vectors * Tiles::outer;
  Operand left(rows, inner, parts), right(columns, inner, parts);
  (turned ? products.left_by_rows : products.left_by_columns)(rows, inner, steps, a, turned ? rows : inner,
                                                              left.tiles());
  (turned ? products.right_by_columns : products.right_by_rows)(columns, inner, steps, b, turned ? inner : columns,
                                                                right.tiles());
  Buffer<float> sums(static_cast<std::size_t>(rows) * padded), first(static_cast<std::size_t>(padded));
  if (start)
    std::copy_n(start, columns, first.get());
  for (int v = 0; v < vectors; v += 2) // panels of two vectors, as the step has them
    products.multiply(rows, std::min(2, vectors - v), steps, left.tiles(), right.tiles().from(v, 0),
                      start ? first.get() + v * Tiles::outer : nullptr, 0, sums.get() + v * Tiles::outer, padded);
  for (int r = 0; r < rows; ++r)
    std::copy_n(sums.get() + static_cast<std::int64_t>(r) * padded, columns,
                out + static_cast<std::int64_t>(r) * columns);
}

} // namespace wholebatch
