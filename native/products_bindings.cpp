// What Python sees of products with rounded operands.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <map>
#include <optional>
#include <stdexcept>
#include <string>

#include "product_unit.h"
#include "rounded_product.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace wholebatch {

MatmulPrecision precision_of(const std::string &name) {
  const std::map<std::string, MatmulPrecision> known{
      {"highest", MatmulPrecision::highest}, {"high", MatmulPrecision::high}, {"medium", MatmulPrecision::medium}};
  if (!known.contains(name))
    throw std::invalid_argument("matmul_precision is '" + name + "'; choose one of 'highest', 'high', 'medium'");
  return known.at(name);
}

namespace {

template <class T, int dimensions> using Array = nb::ndarray<T, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

} // namespace

void bind_products(nb::module_ &m) {
  m.def(
      "product_unit",
      [](const std::string &matmul_precision) -> std::optional<std::string> {
        const ProductUnit unit = product_unit(precision_of(matmul_precision));
        return unit == ProductUnit::none ? std::nullopt : std::optional<std::string>(name_of(unit));
      },
      "matmul_precision"_a = "medium");
  m.def(
      "rounded_product",
      [](const std::string &matmul_precision, bool turned, Array<const float, 2> a, Array<const float, 2> b,
         std::optional<Array<const float, 1>> start, Array<float, 2> out) {
        const auto rows = static_cast<int>(out.shape(0)), columns = static_cast<int>(out.shape(1)),
                   inner = static_cast<int>(a.shape(turned ? 0 : 1));
        const MatmulPrecision precision = precision_of(matmul_precision);
        const Products<float> *unit = products<float>(precision);
        if (unit)
          rounded_product(*unit, precision == MatmulPrecision::high ? 2 : 1, turned, rows, inner, columns, a.data(),
                          b.data(), start ? start->data() : nullptr, out.data());
        return unit != nullptr;
      },
      "matmul_precision"_a, "turned"_a, "a"_a, "b"_a, "start"_a.none(), "out"_a);
}

} // namespace wholebatch
