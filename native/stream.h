// Stores past the caches: a line that is not read again soon is not fetched before it is written, and does not push out
// what is.
#pragma once

#include <algorithm>

#include "simd.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace wholebatch::WB_SET {

// from: aligned to a line.
inline void copy_past_caches(void *to, const void *from, std::int64_t lines) {
  char *t = static_cast<char *>(to);
  const char *f = static_cast<const char *>(from);
#if defined(__AVX512F__)
  for (const char *end = f + 64 * lines; f < end; f += 64, t += 64)
    _mm512_stream_si512(reinterpret_cast<__m512i *>(t), _mm512_load_si512(f));
#elif defined(__AVX__)
  for (const char *end = f + 64 * lines; f < end; f += 32, t += 32)
    _mm256_stream_si256(reinterpret_cast<__m256i *>(t), _mm256_load_si256(reinterpret_cast<const __m256i *>(f)));
#elif defined(__x86_64__)
  for (const char *end = f + 64 * lines; f < end; f += 16, t += 16)
    _mm_stream_si128(reinterpret_cast<__m128i *>(t), _mm_load_si128(reinterpret_cast<const __m128i *>(f)));
#else
  std::memcpy(t, f, static_cast<std::size_t>(64 * lines));
#endif
}

// Streamed lines are seen by other threads in order only after this.
inline void fence_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// fill(begin, end, p) writes elements [begin, end) of a run to p. Straight to `to`, or a few lines at a time through a
// buffer that stays in the first-level cache, and from there past the caches; lines at the ends that the run has only a
// part of are written as usual.
template <class T, class Fill> inline void emit(T *to, std::int64_t count, bool stream, const Fill &fill) {
  constexpr std::int64_t line = 64 / sizeof(T), buffered = 16 * line;
  if (!stream || count < 2 * line) {
    fill(0, count, to);
    return;
  }
  const auto address = reinterpret_cast<std::uintptr_t>(to);
  std::int64_t at = static_cast<std::int64_t>((64 - address % 64) % 64 / sizeof(T));
  if (at > 0)
    fill(0, at, to);
  alignas(64) T buffer[buffered];
  while (count - at >= line) {
    const std::int64_t now = std::min(buffered, (count - at) / line * line);
    fill(at, at + now, buffer);
    copy_past_caches(to + at, buffer, now / line);
    at += now;
  }
  if (at < count)
    fill(at, count, to + at);
}

} // namespace wholebatch::WB_SET
