// Batch norm of one element, or of a vector of them: V is a number or a vector of numbers, in what is computed with.
#pragma once

#include "batch_norm_storage.h"

namespace wholebatch::WB_SET {

enum class Slope { identity, relu, leaky };

// What is above 0 once it is stored as T: half of bfloat16's least number is the greatest that rounds to 0.
template <class T> constexpr Accumulator<T> least_above = is_half<T> ? 0x1p-134f : 0;

// t, before it is rounded for the last time; it is rounded wherever an unfused operation would have stored it. The mean
// is taken off first: scale * z + offset would lose the digits that a large mean takes up.
template <class T, bool residual, class V> inline V before_activation(V z, V mean, V scale, V bias, V added) {
  const V t = (z - mean) * scale + bias;
  if constexpr (residual)
    return stored<T>(t) + added;
  return t;
}

// v < 0 ? 0 : v, which is what the processor's maximum of 0 and v is, for nan and -0 too.
template <class V> inline V not_below_zero(V v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vec<float>>)
    return _mm512_maskz_max_ps(0xffff, V{}, v);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<V, Vec<float>>)
    return _mm256_max_ps(V{}, v);
#endif
  return v < V{} ? V{} : v;
}

// y, to be rounded once more where the slope is not that of a leaky ReLU: what is below 0 is so before it is rounded,
// too. nan stays nan, and -inf under ReLU is 0.
template <class T, Slope kind, class V> inline V activate(V unrounded, Accumulator<T> slope) {
  if constexpr (kind == Slope::relu)
    return not_below_zero(unrounded);
  if constexpr (kind == Slope::leaky) {
    const V t = stored<T>(unrounded);
    return t > V{} ? t : stored<T>(t * slope);
  }
  return unrounded;
}

// dt = g * dy/dt, a value of T.
template <class T, Slope kind, class V> inline V through_activation(V g, V unrounded, Accumulator<T> slope) {
  const V least = V{} + least_above<T>;
  if constexpr (kind == Slope::relu)
    return unrounded > least ? g : V{};
  if constexpr (kind == Slope::leaky)
    return unrounded > least ? g : stored<T>(g * slope);
  return g;
}

// dt of a unit of elements.
template <class T, Slope kind, bool residual, class U>
inline U gradient_of_sum(U g, U z, U mean, U scale, U bias, U added, Accumulator<T> slope) {
  const auto dt = [slope]<class V>(V g, V z, V mean, V scale, V bias, V added) {
    if constexpr (kind == Slope::identity)
      return g;
    else
      return through_activation<T, kind>(g, before_activation<T, residual>(z, mean, scale, bias, added), slope);
  };
  return each(dt, g, z, mean, scale, bias, added);
}

// work.template operator()<kind, residual>() for what these terms and tensors ask for.
template <class T, class Work> inline void specialise(const Tensors<T> &x, Accumulator<T> slope, const Work &work) {
  const bool residual = x.residual != nullptr;
  if (slope == 1)
    residual ? work.template operator()<Slope::identity, true>() : work.template operator()<Slope::identity, false>();
  else if (slope == 0)
    residual ? work.template operator()<Slope::relu, true>() : work.template operator()<Slope::relu, false>();
  else
    residual ? work.template operator()<Slope::leaky, true>() : work.template operator()<Slope::leaky, false>();
}

} // namespace wholebatch::WB_SET
