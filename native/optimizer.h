// SGD, Adam and AdamW on a stretch of parameters, with torch's formulas.
#pragma once

#include <cmath>

#include "gemm.h"
#include "kernels.h"

namespace wholebatch::WB_SET {

template <class T>
void update(const UpdateTerms<T> &t, std::int64_t count, T *__restrict w, const T *__restrict g, T *__restrict first,
            T *__restrict second) {
  if (t.kind == OptimizerKind::sgd) {
    if (t.momentum == 0) {
      for (std::int64_t i = 0; i < count; ++i)
        w[i] -= t.learning_rate * (g[i] + t.weight_decay * w[i]);
    } else {
      const T ahead = t.nesterov ? t.momentum : T(1), fresh = t.nesterov ? T(1) : T(0);
      for (std::int64_t i = 0; i < count; ++i) {
        const T d = g[i] + t.weight_decay * w[i];
        first[i] = t.momentum * first[i] + d;
        w[i] -= t.learning_rate * (fresh * d + ahead * first[i]);
      }
    }
    return;
  }
  const bool decoupled = t.kind == OptimizerKind::adamw;
  const T decay = decoupled ? T(0) : t.weight_decay,
          shrink = decoupled ? T(1) - t.learning_rate * t.weight_decay : T(1);
  for (std::int64_t i = 0; i < count; ++i) {
    const T d = g[i] + decay * w[i];
    first[i] += (d - first[i]) * (T(1) - t.beta1);
    second[i] = second[i] * t.beta2 + d * d * (T(1) - t.beta2);
    const T denominator = std::sqrt(second[i]) / t.root_correction + t.eps;
    w[i] = w[i] * shrink - t.step_size * (first[i] / denominator);
  }
}

// A panel of dW, tile by tile, each followed by its update.
template <class T>
void multiply_and_update(int rows, int count, const T *a, std::int64_t lda, const T *b, std::int64_t ldb, int columns,
                         T *out, bool first, const UpdateTerms<T> &t, T *w, T *first_moment, T *second_moment,
                         const Ahead &ahead) {
  with_width<T>(columns, [&]<int NV, bool HALF>(Width<NV, HALF>) {
    constexpr int wide = NV * width<T>;
    alignas(WB_BYTES) T fresh[WB_TILE_ROWS * wide];
    Asked asked(ahead);
    each_tile(count, [&](int begin, int height) {
      const int at = begin * wide;
      T *g = first ? fresh : out + at;
      transposed_tile<T, NV, HALF>(rows, begin, height, a, lda, b, ldb, g, first, asked);
      update(t, height * wide, w + at, g, first_moment ? first_moment + at : nullptr,
             second_moment ? second_moment + at : nullptr);
    });
  });
}

} // namespace wholebatch::WB_SET
