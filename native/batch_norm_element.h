// Batch norm of one element, or of a vector of them: V is a number or a vector of numbers, in what is computed with.
#pragma once

#include "batch_norm_kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

enum class Slope { identity, relu, leaky };

// The unsigned integers under V, number or vector.
template <class V> struct BitsOf;
template <> struct BitsOf<float> {
  using type = std::uint32_t;
};
template <> struct BitsOf<Vec<float>> {
  typedef std::uint32_t type __attribute__((vector_size(WB_BYTES)));
};

inline float widen(BFloat16 x) { return bits<float>(static_cast<std::uint32_t>(x.bits) << 16); }
template <class T> inline T widen(T x) { return x; }

// v rounded to bfloat16, still in 32 bits: to nearest, ties to even. A nan stays one (its mantissa may lie in the half
// that is cut off, hence the bit set), and does not round up into infinity.
template <class V> inline typename BitsOf<V>::type round_bits(V v) {
  using U = typename BitsOf<V>::type;
  const U u = bits<U>(v);
  const U rounded = (u + (0x7fffu + ((u >> 16) & 1u))) & 0xffff0000u;
  return (u & 0x7fffffffu) > 0x7f800000u ? (u & 0xffff0000u) | 0x400000u : rounded;
}

// As it would come back from storage of type T.
template <class T, class V> inline V stored(V v) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return bits<V>(round_bits(v));
  else
    return v;
}
template <class T> inline T narrow(Accumulator<T> v) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return {static_cast<std::uint16_t>(round_bits(v) >> 16)};
  else
    return v;
}

// A vector from storage.
template <class T> inline Vec<Accumulator<T>> load_wide(const T *p) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    typedef std::uint16_t Half __attribute__((vector_size(WB_BYTES / 2), aligned(2), may_alias));
    using U = typename BitsOf<Vec<float>>::type;
    const U u = __builtin_convertvector(*reinterpret_cast<const Half *>(p), U);
    return bits<Vec<float>>(u << 16);
  } else {
    return load(p);
  }
}

// t, rounded wherever an unfused operation would have stored it. The mean is taken off first: scale * z + offset would
// lose the digits that a large mean takes up.
template <class T, bool residual, class V> inline V before_activation(V z, V mean, V scale, V bias, V added) {
  const V t = stored<T>((z - mean) * scale + bias);
  if constexpr (residual)
    return stored<T>(t + added);
  return t;
}

// nan stays nan, and -inf under ReLU is 0.
template <class T, Slope kind, class V> inline V activate(V t, Accumulator<T> slope) {
  if constexpr (kind == Slope::relu)
    return t < V{} ? V{} : t;
  if constexpr (kind == Slope::leaky)
    return t > V{} ? t : stored<T>(t * slope);
  return t;
}

// dt = g * dy/dt.
template <class T, Slope kind, class V> inline V through_activation(V g, V t, Accumulator<T> slope) {
  if constexpr (kind == Slope::relu)
    return t > V{} ? g : V{};
  if constexpr (kind == Slope::leaky)
    return t > V{} ? g : stored<T>(g * slope);
  return g;
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
