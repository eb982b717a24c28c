// Memory that is asked for while products are computed, because what follows them reads it.
//
// A product waits for nothing; what stands between two products waits for memory and does little else. So the rows of
// the next block are asked for one line at a time, one for each inner index of a register tile: a processor drops what
// it is asked for faster than memory answers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "buffer.h"

namespace wholebatch {

// A product's part of a list of addresses, one of each line of memory.
struct Ahead {
  // A register tile asks once for each of its inner indices, which are at most so many, and so beyond its part.
  static constexpr int slack = 192;
  const void *const *lines = nullptr;
  std::int64_t count = 0;
};

inline const void *const asked_for_nothing = &asked_for_nothing; // a line that is there

// How far the tiles of a product are in its part.
class Asked {
public:
  explicit Asked(const Ahead &ahead) : next_(ahead.lines), left_(ahead.count) {}
  const void *const *next() const { return left_ > 0 ? next_ : &asked_for_nothing; }
  int step() const { return left_ > 0 ? 1 : 0; }
  void advance(int indices) {
    next_ += step() * indices;
    left_ -= indices;
  }

private:
  const void *const *next_;
  std::int64_t left_;
};

// What a worker's next products shall ask for.
class Wanted {
public:
  void reserve(std::int64_t lines) {
    most_ = std::min(lines, limit);
    lines_.resize(most_ + Ahead::slack);
  }
  void clear() { count_ = 0; }
  void add(const void *at, std::int64_t bytes) {
    const char *line = static_cast<const char *>(at);
    const std::int64_t count = std::min((bytes + size - 1) / size, most_ - count_);
    const void **to = lines_.get() + count_;
    for (std::int64_t i = 0; i < count; ++i)
      to[i] = line + i * size;
    count_ += count;
  }
  // After the last one, and before the first part is taken.
  void close() {
    if (count_ > 0)
      std::fill_n(lines_.get() + count_, Ahead::slack, &asked_for_nothing);
  }
  // The i-th of n parts.
  Ahead part(std::int64_t i, std::int64_t n) const {
    const std::int64_t begin = count_ * i / n;
    return {lines_.get() + begin, count_ * (i + 1) / n - begin};
  }

private:
  static constexpr std::int64_t size = 64, limit = 8192; // bytes of a line; lines of half a second-level cache
  Buffer<const void *> lines_;
  std::int64_t count_ = 0, most_ = 0;
};

} // namespace wholebatch
