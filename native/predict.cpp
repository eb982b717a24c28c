// Outputs in eval mode: a block of rows passes through all layers while it stays in cache, and nobody waits for
// anybody.
#include <algorithm>
#include <cmath>

#include "network.h"

namespace wholebatch {

template <class T>
void Network<T>::predict(const Table<T> &table, std::int64_t rows, T *out,
                         const std::function<void(std::int64_t, double)> &poll_python) {
  const Epoch epoch{table, nullptr, nullptr, 0, 0, nullptr, false, poll_python, {}};
  open(epoch);
  const std::int64_t blocks = (rows + Blocks::most - 1) / Blocks::most;
  team().run([&](int worker) {
    Workspace<T> &work = work_[worker];
    for (int l = 0; l < hidden(); ++l) {
      auto &v = work.layers[l];
      LayerState<T> &layer = layers_[l];
      for (int c = 0; layer.norm && c < layer.padded; ++c) {
        v.gamma[c] = layer.gamma.value[c];
        v.beta[c] = layer.beta.value[c];
        v.mean[c] = static_cast<T>(layer.running_mean[c]);
        v.scale[c] = static_cast<T>(layer.gamma.value[c] / std::sqrt(layer.running_var[c] + config_.eps));
      }
      prepare_between(worker, l);
      v.between.threshold = 0; // no dropout
      v.between.row_mean = work.row_mean.get();
      v.between.row_rstd = work.row_rstd.get();
    }
    for (std::int64_t b = blocks * worker / config_.threads; b < blocks * (worker + 1) / config_.threads; ++b) {
      poll(worker);
      if (team_->stop_asked())
        break;
      const std::int64_t first = b * Blocks::most;
      const int count = static_cast<int>(std::min(Blocks::most, rows - first));
      std::vector<std::int64_t> index(count);
      for (int r = 0; r < count; ++r)
        index[r] = first + r;
      gather(table, index.data(), count, 0, layers_[0].depth, false, work.h.get(), ldh_);
      for (int l = 0; l <= hidden(); ++l) {
        LayerState<T> &layer = layers_[l];
        const Matrix h =
            left_matrix(worker, count, layer.depth, {work.h.get(), ldh_}, layer.panels.count(), kernels_.pack);
        for (std::int64_t p = 0; p < layer.panels.count(); ++p) {
          const std::int64_t first = layer.panels.first(p);
          kernels_.multiply(count, layer.depth, h.at, h.ld, layer.weight.value.get() + first * layer.depth,
                            layer.panels.columns(p), work.dz.get() + first, lddz_, {});
        }
        if (l == hidden())
          break;
        const Between<T> &between = work.layers[l].between;
        if (row_norm())
          kernels_.row_statistics(between, {0, count, 0}, work.dz.get(), lddz_);
        kernels_.normalise(between, {0, count, 0}, work.dz.get(), lddz_, 0, layer.padded, work.h.get(), ldh_);
        if (layers_[l + 1].bias)
          for (int r = 0; r < count; ++r)
            work.h[r * ldh_ + layers_[l + 1].inputs] = T(1);
      }
      const int outputs = layers_.back().outputs;
      for (int r = 0; r < count; ++r)
        std::copy_n(work.dz.get() + r * lddz_, outputs, out + (first + r) * outputs);
    }
  });
  close();
}

template class Network<float>;
template class Network<double>;

} // namespace wholebatch
