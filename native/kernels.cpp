// Compiled once per instruction set; see CMakeLists.txt.
#include "kernels.h"

#include "chain.h"
#include "columns.h"
#include "gemm.h"
#include "layer.h"
#include "loss.h"
#include "optimizer.h"
#include "packing.h"

#define WB_JOIN(a, b) a##b
#define WB_KERNELS(set) WB_JOIN(kernels_, set)

namespace wholebatch {

template <class T> const Kernels<T> &WB_KERNELS(WB_SET)() {
  namespace set = WB_SET;
  static constexpr Kernels<T> kernels{set::width<T>,
                                      set::pack<T>,
                                      set::pack_transposed<T>,
                                      set::pack_panel<T>,
                                      set::multiply<T>,
                                      set::multiply_transposed<T>,
                                      set::multiply_and_update<T>,
                                      set::transpose<T>,
                                      set::exchange<T>,
                                      set::moments<T>,
                                      set::row_statistics<T>,
                                      set::normalise<T>,
                                      set::input_gradient<T>,
                                      set::output_gradient<T>,
                                      set::statistics<T>,
                                      set::gradient_terms<T>,
                                      set::sum_parts<T>,
                                      set::gather<T>,
                                      set::loss<T>,
                                      set::update<T>,
                                      set::fma_chain<T>};
  return kernels;
}

template const Kernels<float> &WB_KERNELS(WB_SET)<float>();
template const Kernels<double> &WB_KERNELS(WB_SET)<double>();

} // namespace wholebatch
