// Which unit of the processor multiplies bfloat16 numbers: the best of those that are faster than float32, or the one
// that WHOLEBATCH_PRODUCT_UNIT names.
#pragma once

#include "products.h"

namespace wholebatch {

enum class ProductUnit { none, avx512_bf16, amx };

const char *name_of(ProductUnit unit);

// Throws std::invalid_argument where the variable names one that is unknown, or not here. Beside other instructions
// than those of AVX-512 there is none.
ProductUnit product_unit(MatmulPrecision precision);

// The products of a unit, "high" or "medium"; null where it is not here.
const Products<float> *products_by(ProductUnit unit, MatmulPrecision precision);

// Those of the unit for this precision; null for "highest", where there is no unit, and for float64.
template <class T> const Products<T> *products(MatmulPrecision precision);

} // namespace wholebatch
