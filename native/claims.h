// Who does what in a phase: its units (blocks of rows, stretches of a weight matrix) are dealt out in equal runs, and
// whoever is done takes units from the end of another's run.
//
// On a shared machine one core is often slower than the others, and everyone would wait for it. Which worker does a
// unit changes no bit of what comes out. Each worker begins with the same units in every phase: they are in its cache.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace wholebatch {

class Claims {
public:
  Claims(int sets, int workers)
      : workers_(workers), runs_(std::make_unique<Run[]>(static_cast<std::size_t>(sets) * workers)) {}

  // A worker's run of a set of `units`. Called by that worker, between two meetings in which nobody claims from the
  // set.
  void deal(int set, int worker, std::int64_t units) {
    run(set, worker).store(pack(units * worker / workers_, units * (worker + 1) / workers_));
  }

  // A unit that nobody else has or will get; -1 where none is left.
  std::int64_t next(int set, int worker) {
    std::uint64_t bounds = run(set, worker).load();
    while (begin_of(bounds) < end_of(bounds))
      if (run(set, worker).compare_exchange_weak(bounds, pack(begin_of(bounds) + 1, end_of(bounds))))
        return begin_of(bounds);
    for (int i = 1; i < workers_; ++i) {
      std::atomic<std::uint64_t> &other = run(set, (worker + i) % workers_);
      bounds = other.load();
      while (begin_of(bounds) < end_of(bounds))
        if (other.compare_exchange_weak(bounds, pack(begin_of(bounds), end_of(bounds) - 1)))
          return end_of(bounds) - 1;
    }
    return -1;
  }

private:
  struct alignas(64) Run {
    std::atomic<std::uint64_t> bounds{0};
  };
  static std::uint64_t pack(std::int64_t begin, std::int64_t end) {
    return static_cast<std::uint64_t>(begin) << 32 | static_cast<std::uint64_t>(end);
  }
  static std::int64_t begin_of(std::uint64_t bounds) { return static_cast<std::int64_t>(bounds >> 32); }
  static std::int64_t end_of(std::uint64_t bounds) { return static_cast<std::int64_t>(bounds & 0xffffffff); }
  std::atomic<std::uint64_t> &run(int set, int worker) { return runs_[set * workers_ + worker].bounds; }

  int workers_;
  std::unique_ptr<Run[]> runs_;
};

} // namespace wholebatch
