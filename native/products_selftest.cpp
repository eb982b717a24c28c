// Products of rounded operands, for the sanitizers: each unit that is here, matrices of odd sizes in memory of just
// their size, against the same product in double.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "product_unit.h"
#include "rounded_product.h"

namespace wholebatch {

namespace {

// The largest error of an element, over the sum of its terms' sizes.
double worst_error(const Products<float> &products, int parts, bool turned, int rows, int inner, int columns) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1);
  const auto numbers = [&](int count) {
    std::vector<float> made(static_cast<std::size_t>(count));
    for (float &number : made)
      number = normal(random);
    return made;
  };
  const std::vector<float> a = numbers(rows * inner), b = numbers(inner * columns), start = numbers(columns);
  std::vector<float> out(static_cast<std::size_t>(rows) * columns);
  rounded_product(products, parts, turned, rows, inner, columns, a.data(), b.data(), start.data(), out.data());
  double worst = 0;
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < columns; ++c) {
      double sum = start[c], size = std::abs(sum);
      for (int k = 0; k < inner; ++k) {
        const double term = static_cast<double>(a[turned ? k * rows + r : r * inner + k]) *
                            static_cast<double>(b[turned ? c * inner + k : k * columns + c]);
        sum += term;
        size += std::abs(term);
      }
      worst = std::max(worst, std::abs(out[r * columns + c] - sum) / size);
    }
  return worst;
}

} // namespace

bool products_are_near() {
  int checked = 0;
  for (ProductUnit unit : {ProductUnit::amx, ProductUnit::avx512_bf16})
    for (int parts : {1, 2}) {
      const auto precision = parts == 2 ? MatmulPrecision::high : MatmulPrecision::medium;
      const Products<float> *products = products_by(unit, precision);
      for (bool turned : {false, true})
        for (int rows : {1, 8, 15, 16, 17, 33})
          for (int inner : {1, 31, 32, 33, 600})
            for (int columns : {1, 16, 17, 33}) {
              if (!products)
                continue;
              // "medium" rounds each operand by 2^-8 of it; "high" by 2^-16, and leaves 2^-16 of the product out. The
              // sum is rounded by 2^-24 at each of up to 3 inner + 1 terms.
              const double rounding = parts == 1 ? 2 * 0x1p-8 + 0x1p-16 : 3 * 0x1p-16 + 0x1p-32,
                           bound = rounding + (3 * inner + 1) * 0x1p-24;
              ++checked;
              if (const double error = worst_error(*products, parts, turned, rows, inner, columns); !(error <= bound)) {
                std::printf("products by %s: %d x %d x %d, turned %d, parts %d: error %g above %g\n", name_of(unit),
                            rows, inner, columns, turned, parts, error, bound);
                return false;
              }
            }
    }
  std::printf("products: %d within their bounds\n", checked);
  return true;
}

} // namespace wholebatch
