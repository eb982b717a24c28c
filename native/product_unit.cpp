#include "product_unit.h"

#include <cstdlib>
#include <string>
#if defined(WB_BUILT_amx)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "dispatch.h"

namespace wholebatch {

#ifdef WB_BUILT_avx512_bf16
const Products<float> &products_avx512_bf16(MatmulPrecision precision); // products_avx512_bf16.cpp
#endif
#ifdef WB_BUILT_amx
const Products<float> &products_amx(MatmulPrecision precision); // products_amx.cpp
#endif

namespace {

#ifdef WB_BUILT_amx
// The tiles' memory is not part of a thread until the process asks for it, once; all of its threads have it then.
bool ask_for_tiles() {
  constexpr int request = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0)
    return false;
  constexpr unsigned tiles_and_products = 1U << 24 | 1U << 22; // AMX-TILE, AMX-BF16
  return (d & tiles_and_products) == tiles_and_products && syscall(SYS_arch_prctl, request, tile_data) == 0;
}
#endif

bool has(ProductUnit unit) {
#ifdef WB_BUILT_avx512_bf16
  const bool vectors = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (unit == ProductUnit::avx512_bf16)
    return vectors;
#ifdef WB_BUILT_amx
  static const bool tiles = ask_for_tiles();
  if (unit == ProductUnit::amx)
    return vectors && tiles; // operands are rounded by the vectors' instructions
#endif
#endif
  return unit == ProductUnit::none;
}

// Panels are as wide as the tiles of a unit with AVX-512 only.
bool fits(ProductUnit unit) {
  return has(unit) && (unit == ProductUnit::none || instruction_set() == InstructionSet::avx512);
}

// Two products for one make AVX-512 BF16 twice as fast as float32 where its instruction takes no longer than a
// multiply-add: so on AMD's processors, by their tables. On an Intel of 2023 it takes 2.8 times as long (0.96 and 2.7
// billion a second, measured in one loop). Three products for one, of "high", pay nowhere.
bool pays(ProductUnit unit, MatmulPrecision precision) {
#ifdef WB_BUILT_avx512_bf16
  if (unit == ProductUnit::avx512_bf16)
    return precision == MatmulPrecision::medium && __builtin_cpu_is("amd");
#endif
  static_cast<void>(unit);
  static_cast<void>(precision);
  return true;
}

} // namespace

const char *name_of(ProductUnit unit) {
  return unit == ProductUnit::amx ? "amx" : unit == ProductUnit::avx512_bf16 ? "avx512_bf16" : "none";
}

ProductUnit product_unit(MatmulPrecision precision) {
  const char *wish = std::getenv("WHOLEBATCH_PRODUCT_UNIT");
  const bool open = wish == nullptr || *wish == '\0';
  std::string here;
  for (ProductUnit unit : {ProductUnit::amx, ProductUnit::avx512_bf16, ProductUnit::none}) {
    if (open ? fits(unit) && pays(unit, precision) : std::string(wish) == name_of(unit) && fits(unit))
      return unit;
    if (fits(unit))
      here += here.empty() ? name_of(unit) : std::string(", ") + name_of(unit);
  }
  throw std::invalid_argument("WHOLEBATCH_PRODUCT_UNIT is '" + std::string(wish) +
                              "'; known are amx, avx512_bf16 and none, and with the instruction set " +
                              name_of(instruction_set()) + " there are here: " + here);
}

const Products<float> *products_by(ProductUnit unit, MatmulPrecision precision) {
  if (!has(unit))
    return nullptr;
#ifdef WB_BUILT_amx
  if (unit == ProductUnit::amx)
    return &products_amx(precision);
#endif
#ifdef WB_BUILT_avx512_bf16
  if (unit == ProductUnit::avx512_bf16)
    return &products_avx512_bf16(precision);
#endif
  static_cast<void>(precision);
  return nullptr;
}

template <> const Products<float> *products<float>(MatmulPrecision precision) {
  return precision == MatmulPrecision::highest ? nullptr : products_by(product_unit(precision), precision);
}

template <> const Products<double> *products<double>(MatmulPrecision precision) {
  if (precision != MatmulPrecision::highest)
    throw std::invalid_argument("matmul_precision 'high' and 'medium' are for float32 nets; use 'highest' in float64");
  return nullptr;
}

} // namespace wholebatch
