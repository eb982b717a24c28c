// exp, log, tanh and erf on vectors, and the activations built on them.
//
// The C library's scalar functions and its vector ones round differently, so a loop's tail would differ from its body.
// These are plain vector arithmetic, the same in every lane. In double they call the C library lane by lane: float64 is
// for exactness, not for speed.
//
// Sources: the float coefficients of exp, log and tanh are those of Moshier's Cephes library (errors near 2 ulp); erf
// is formula 7.1.26 of Abramowitz and Stegun (absolute error at most 1.5e-7).
#pragma once

#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace wholebatch::WB_SET {

template <class T, class F> inline Vec<T> by_lane(Vec<T> x, F f) {
  for (int i = 0; i < width<T>; ++i)
    x[i] = f(x[i]);
  return x;
}

inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  x = x > 88.0f ? all(88.0f) : x;
  x = x < -87.0f ? all(-87.0f) : x;
  const float magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const V shifted = fma<float>(x, all(1.44269504f), all(magic));
  const V n = shifted - magic;
  V r = fma<float>(n, all(-0.693359375f), x);
  r = fma<float>(n, all(2.12194440e-4f), r);
  V p = all(1.9875691500e-4f);
  p = fma<float>(p, r, all(1.3981999507e-3f));
  p = fma<float>(p, r, all(8.3334519073e-3f));
  p = fma<float>(p, r, all(4.1665795894e-2f));
  p = fma<float>(p, r, all(1.6666665459e-1f));
  p = fma<float>(p, r, all(5.0000001201e-1f));
  p = fma<float>(p, r * r, r + 1.0f);
  const auto power = (bits<IntVec<float>>(shifted) - bits<IntVec<float>>(all(magic)) + 127) << 23;
  return p * bits<V>(power);
}
inline Vec<double> exp(Vec<double> x) {
  return by_lane<double>(x, [](double v) { return std::exp(v); });
}

// Of positive normal numbers; nan and infinity give nan.
inline Vec<float> log(Vec<float> x) {
  using V = Vec<float>;
  const auto raw = bits<IntVec<float>>(x);
  V m = bits<V>((raw & 0x007fffff) | 0x3f000000); // [0.5, 1)
  V e = __builtin_convertvector((raw >> 23) - 126, V);
  const auto low = m < 0.70710678f;
  e = low ? e - 1.0f : e;
  m = (low ? m + m : m) - 1.0f;
  const V z = m * m;
  V p = all(7.0376836292e-2f);
  p = fma<float>(p, m, all(-1.1514610310e-1f));
  p = fma<float>(p, m, all(1.1676998740e-1f));
  p = fma<float>(p, m, all(-1.2420140846e-1f));
  p = fma<float>(p, m, all(1.4249322787e-1f));
  p = fma<float>(p, m, all(-1.6668057665e-1f));
  p = fma<float>(p, m, all(2.0000714765e-1f));
  p = fma<float>(p, m, all(-2.4999993993e-1f));
  p = fma<float>(p, m, all(3.3333331174e-1f));
  p = p * m * z;
  p = fma<float>(e, all(-2.12194440e-4f), p);
  p = fma<float>(z, all(-0.5f), p);
  return fma<float>(e, all(0.693359375f), m + p) + (x - x);
}
inline Vec<double> log(Vec<double> x) {
  return by_lane<double>(x, [](double v) { return std::log(v); });
}

inline Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V z = x * x;
  V p = all(-5.70498872745e-3f);
  p = fma<float>(p, z, all(2.06390887954e-2f));
  p = fma<float>(p, z, all(-5.37397155531e-2f));
  p = fma<float>(p, z, all(1.33314422036e-1f));
  p = fma<float>(p, z, all(-3.33332819422e-1f));
  const V small = fma<float>(p * z, x, x);
  const V large = 1.0f - 2.0f / (exp(x + x) + 1.0f);
  return z < 0.390625f ? small : large;
}
inline Vec<double> tanh(Vec<double> x) {
  return by_lane<double>(x, [](double v) { return std::tanh(v); });
}

inline Vec<float> erf(Vec<float> x) {
  using V = Vec<float>;
  const V a = x < 0.0f ? -x : x;
  const V t = 1.0f / fma<float>(a, all(0.3275911f), all(1.0f));
  V p = all(1.061405429f);
  p = fma<float>(p, t, all(-1.453152027f));
  p = fma<float>(p, t, all(1.421413741f));
  p = fma<float>(p, t, all(-0.284496736f));
  p = fma<float>(p, t, all(0.254829592f));
  const V y = 1.0f - p * t * exp(-a * a);
  return x < 0.0f ? -y : y;
}
inline Vec<double> erf(Vec<double> x) {
  return by_lane<double>(x, [](double v) { return std::erf(v); });
}

template <class T> inline Vec<T> sigmoid(Vec<T> x) { return T(1) / (T(1) + exp(-x)); }
template <class T> inline Vec<T> normal_cdf(Vec<T> x) { return T(0.5) + T(0.5) * erf(x * T(0.70710678118654752440)); }

// phi(y). The comparisons are written so that a nan stays a nan and a diverging net is noticed.
template <class T, Activation A> inline Vec<T> activate(Vec<T> y) {
  if constexpr (A == Activation::relu)
    return y <= T(0) ? Vec<T>{} : y;
  else if constexpr (A == Activation::leaky_relu)
    return y <= T(0) ? y * T(0.01) : y;
  else if constexpr (A == Activation::elu)
    return y <= T(0) ? exp(y) - T(1) : y;
  else if constexpr (A == Activation::gelu)
    return y * normal_cdf<T>(y);
  else if constexpr (A == Activation::silu)
    return y * sigmoid<T>(y);
  else if constexpr (A == Activation::tanh)
    return tanh(y);
  else if constexpr (A == Activation::sigmoid)
    return sigmoid<T>(y);
  else
    return y;
}

// phi'(y), at kinks what torch takes.
template <class T, Activation A> inline Vec<T> slope(Vec<T> y) {
  const Vec<T> one = all(T(1));
  if constexpr (A == Activation::relu)
    return y <= T(0) ? Vec<T>{} : one;
  else if constexpr (A == Activation::leaky_relu)
    return y <= T(0) ? all(T(0.01)) : one;
  else if constexpr (A == Activation::elu)
    return y <= T(0) ? exp(y) : one;
  else if constexpr (A == Activation::gelu)
    return normal_cdf<T>(y) + y * exp(y * y * T(-0.5)) * T(0.39894228040143267794);
  else if constexpr (A == Activation::silu) {
    const Vec<T> s = sigmoid<T>(y);
    return s * (one + y * (one - s));
  } else if constexpr (A == Activation::tanh) {
    const Vec<T> h = tanh(y);
    return one - h * h;
  } else if constexpr (A == Activation::sigmoid) {
    const Vec<T> s = sigmoid<T>(y);
    return s * (one - s);
  } else
    return one;
}

// g * phi'(y). What is cut off is cut by a mask: one operation, and it leaves no -0.
template <class T, Activation A> inline Vec<T> times_slope(Vec<T> g, Vec<T> y) {
  if constexpr (A == Activation::relu)
    return y <= T(0) ? Vec<T>{} : g;
  else if constexpr (A == Activation::identity)
    return g;
  else
    return g * slope<T, A>(y);
}

} // namespace wholebatch::WB_SET
