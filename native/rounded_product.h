// One product of whole matrices with rounded operands, made as the step makes it of blocks: for tests.
#pragma once

#include "products.h"

namespace wholebatch {

// out (rows x columns) = start + a b. a is (rows, inner), b (inner, columns); turned: a is (inner, rows) and b
// (columns, inner), and tiles take them the other way. start: one number for each column, or null. parts: 2 for "high",
// 1 for "medium".
void rounded_product(const Products<float> &products, int parts, bool turned, int rows, int inner, int columns,
                     const float *a, const float *b, const float *start, float *out);

} // namespace wholebatch
