// Compiled once per instruction set; see CMakeLists.txt.
#include "batch_norm_kernels.h"

#include "batch_norm_channels.h"
#include "batch_norm_columns.h"
#include "batch_norm_maps.h"

#define WB_JOIN(a, b) a##b
#define WB_BATCH_NORM(set) WB_JOIN(batch_norm_kernels_, set)

namespace wholebatch {

template <class T> const BatchNormKernels<T> &WB_BATCH_NORM(WB_SET)() {
  namespace set = WB_SET;
  using Columns = set::PerColumn<Accumulator<T>>;
  using Channel = set::PerChannel<Accumulator<T>>;
  static constexpr BatchNormKernels<T> kernels{
      set::column_moments<T>, set::channel_moments<T>, set::column_sums<T>,       set::channel_sums<T>,
      set::apply<T, Columns>, set::apply<T, Channel>,  set::gradient<T, Columns>, set::gradient<T, Channel>};
  return kernels;
}

template const BatchNormKernels<float> &WB_BATCH_NORM(WB_SET)<float>();
template const BatchNormKernels<double> &WB_BATCH_NORM(WB_SET)<double>();
template const BatchNormKernels<BFloat16> &WB_BATCH_NORM(WB_SET)<BFloat16>();

} // namespace wholebatch
