// Elements on their way from storage and into it.
#pragma once

#include <bit>

#include "batch_norm_unit.h"

namespace wholebatch::WB_SET {

// From storage.
template <class U, class T> inline U get(const T *p) {
  if constexpr (is_half<T> && is_single<U>) {
    return {{bits<float>(static_cast<std::uint32_t>(p->bits) << 16)}};
  } else if constexpr (is_half<T> && U::vectors == 2) {
    static_assert(std::endian::native == std::endian::little, "the element at the even place is the lower half");
    Words v;
    std::memcpy(&v, p, sizeof(v));
    return {{bits<Vec<float>>(v << 16), bits<Vec<float>>(v & upper_half)}};
  } else if constexpr (is_half<T>) {
    HalfWords v;
    std::memcpy(&v, p, sizeof(v));
    return {{bits<Vec<float>>(to_words(v) << 16)}};
  } else if constexpr (is_single<U>) {
    return {{*p}};
  } else {
    return {{load(p)}};
  }
}

// Past the caches, see `put`; to an address that is aligned to the vector.
template <class V> inline void stream(void *p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64)
    _mm512_stream_si512(static_cast<__m512i *>(p), bits<__m512i>(v));
  else
    _mm256_stream_si256(static_cast<__m256i *>(p), bits<__m256i>(v));
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32)
    _mm256_stream_si256(static_cast<__m256i *>(p), bits<__m256i>(v));
  else
    _mm_stream_si128(static_cast<__m128i *>(p), bits<__m128i>(v));
#else
  std::memcpy(p, &v, sizeof(V));
#endif
}

// Into storage. exact: it is a value of T already, and is not rounded again. past: past the caches, where a set has
// stores that do it: a line that is not read again soon is then not fetched before it is written, and does not push out
// what is.
template <bool exact, class T, class V, int N>
inline void put(T *p, const Unit<V, N> &unit, [[maybe_unused]] bool past) {
  const auto write = [&](auto v) {
    past ? stream(p, v) : static_cast<void>(std::memcpy(static_cast<void *>(p), &v, sizeof(v)));
  };
  if constexpr (is_half<T> && is_single<Unit<V, N>>)
    p->bits = static_cast<std::uint16_t>(upper_bits<exact>(unit.of[0]) >> 16);
  else if constexpr (is_half<T> && N == 2)
    write((upper_bits<exact>(unit.of[0]) >> 16) | (upper_bits<exact>(unit.of[1]) & upper_half));
  else if constexpr (is_half<T>)
    write(to_half_words(upper_bits<exact>(unit.of[0]) >> 16));
  else if constexpr (is_single<Unit<V, N>>)
    *p = unit.of[0];
  else
    write(unit.of[0]);
}

// Into the second-level cache, ahead of its use: the processor's own look-ahead ends where a run does, and rests while
// a block is gone over for the second time.
template <class T> inline void prefetch(const T *p) { __builtin_prefetch(p, 0, 2); }

} // namespace wholebatch::WB_SET
