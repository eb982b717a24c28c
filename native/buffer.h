// Aligned memory that is zeroed once, and asks for huge pages where it is large (they are given on request only, on
// many systems).
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "huge_pages.h"

namespace wholebatch {

template <class T> class Buffer {
public:
  Buffer() = default;
  explicit Buffer(std::size_t count) { resize(count); }

  // Grows to at least count elements, all zero; what was there is lost.
  void resize(std::size_t count) {
    if (count <= count_)
      return;
    // A block of rows lies on more small pages than the first-level table of pages has entries.
    constexpr std::size_t line = 64, huge = std::size_t{1} << 21, large = std::size_t{1} << 18;
    const std::size_t bytes = count * sizeof(T), unit = bytes >= large ? huge : line;
    const std::size_t rounded = (bytes + unit - 1) / unit * unit;
    data_.reset(static_cast<T *>(std::aligned_alloc(unit, rounded)));
    count_ = 0;
    if (!data_)
      throw std::bad_alloc();
    if (unit == huge)
      advise_huge_pages(reinterpret_cast<std::uintptr_t>(data_.get()), rounded);
    std::memset(static_cast<void *>(data_.get()), 0, rounded);
    count_ = count;
  }

  T *get() { return data_.get(); }
  const T *get() const { return data_.get(); }
  T *at(std::size_t i) { return data_ ? data_.get() + i : nullptr; } // null of an empty one
  T &operator[](std::size_t i) { return data_.get()[i]; }
  const T &operator[](std::size_t i) const { return data_.get()[i]; }
  std::size_t size() const { return count_; }

private:
  struct Free {
    void operator()(T *p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t count_ = 0;
};

} // namespace wholebatch
