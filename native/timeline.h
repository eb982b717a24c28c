// What every worker of a step did, and when: marks that each writes into memory of its own.
//
// A mark ends the stretch of time since the worker's mark before it, so that one look at the clock bounds two
// stretches. Nothing is locked, allocated or shared meanwhile; lanes are read when the run is over. Where nothing is
// recorded there is no lane, and a step tests one pointer at the end of each of its phases.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

#include "buffer.h"
#include "relax.h"

namespace wholebatch {

// The processor's counter where it runs at one speed in every state of the processor: a look takes 18 ns on the machine
// where it was measured (a Xeon under a hypervisor), one at the system's clock 35 ns. Elsewhere the system's steady
// clock.
class Ticks {
public:
  static bool has_counter() {
#if defined(__x86_64__)
    unsigned a, b, c, d;
    return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d >> 8 & 1); // "invariant TSC"
#else
    return false;
#endif
  }
  static std::int64_t steady() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  std::int64_t now() const {
#if defined(__x86_64__)
    if (counter_)
      return static_cast<std::int64_t>(__rdtsc());
#endif
    return steady();
  }

private:
  bool counter_ = has_counter();
};

// exchange: telling other ranks, and merging what they told; ranks: waiting for them. spinning, yielding, parked: the
// ways of waiting at a meeting, in this order; waking: the last to come lets the others go.
enum class Doing : std::uint8_t {
  begin,
  compute,
  merge,
  injected,
  exchange,
  ranks,
  spinning,
  yielding,
  parked,
  waking
};
// What a stretch belongs to. Meetings: forward (moments), rows (statistics of whole rows), loss, backward (sums),
// gradient (before the first layer's), norm (the gradient's), clip (it was read by all), update (the end of the step),
// exchange (the ranks' parts of all gradients).
enum class Stage : std::uint8_t { forward, rows, loss, backward, gradient, norm, clip, update, exchange };

struct Mark {
  std::int64_t ticks;
  std::int32_t step;
  std::int16_t layer; // -1: of no layer
  Doing doing;
  Stage stage;
};
static_assert(sizeof(Mark) == 16);

// A worker's computing is made to last `factor` times as long: all of it, or (with `turns` above 1) each of its
// computations with a chance of 1 in `turns`. Which ones is a function of their number alone, and different for each
// `turn`: workers of as many ranks, each with a turn of its own, are never late at the same place.
struct Delay {
  double factor = 1;
  int turns = 1, turn = 0;

  bool hits(std::uint64_t computation) const {
    if (turns <= 1)
      return true;
    std::uint64_t z = (computation + 1) * 0x9e3779b97f4a7c15u; // splitmix64 (Steele, Lea and Flood, 2014)
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<int>((z ^ (z >> 31)) % static_cast<std::uint64_t>(turns)) == turn;
  }
};

// One worker's marks.
class alignas(64) Lane {
public:
  // delay: of this worker's computing.
  void reserve(std::size_t marks, const Delay &delay) {
    marks_.resize(marks);
    capacity_ = marks;
    delay_ = delay;
  }
  void clear() { count_ = computations_ = 0; }
  std::size_t count() const { return count_; }
  const Mark &operator[](std::size_t i) const { return marks_[i]; }

  void begin(std::int64_t step) {
    step_ = static_cast<std::int32_t>(step);
    if (count_ == 0)
      mark(Doing::begin);
  }
  // What the marks that follow belong to.
  Lane *at(Stage stage, int layer) {
    stage_ = stage;
    layer_ = static_cast<std::int16_t>(layer);
    return this;
  }
  void mark(Doing doing) {
    before_ = last_;
    last_ = ticks_.now();
    if (count_ < capacity_)
      marks_[count_++] = {last_, step_, layer_, doing, stage_};
  }
  void computed() {
    mark(Doing::compute);
    if (delay_.factor <= 1 || !delay_.hits(computations_++))
      return;
    const auto until = last_ + static_cast<std::int64_t>((delay_.factor - 1) * static_cast<double>(last_ - before_));
    while (ticks_.now() < until)
      relax();
    mark(Doing::injected);
  }

private:
  Buffer<Mark> marks_;
  std::size_t count_ = 0, capacity_ = 0, computations_ = 0;
  Delay delay_;
  std::int64_t before_ = 0, last_ = 0;
  std::int32_t step_ = 0;
  std::int16_t layer_ = 0;
  Stage stage_{};
  Ticks ticks_;
};

// The lanes of a team, and their ticks in nanoseconds of the steady clock.
class Timeline {
public:
  // slow: the worker that is held up, -1: nobody.
  Timeline(int workers, std::int64_t steps, int layers, int slow, const Delay &delay) : lanes_(workers) {
    // A layer has up to 3 computations (and what is injected after each), 2 merges and 3 meetings of up to 3 ways to
    // wait; the rest of a step is less than two layers.
    constexpr std::int64_t each = 48; // over ranks
    for (int w = 0; w < workers; ++w)
      lanes_[w].reserve(static_cast<std::size_t>(steps * each * (layers + 2) + 1), w == slow ? delay : Delay{});
  }
  Lane &lane(int worker) { return lanes_[worker]; }
  const Lane &lane(int worker) const { return lanes_.at(worker); }

  // Around a run, on the calling thread.
  void open() {
    for (Lane &lane : lanes_)
      lane.clear();
    first_ = look();
  }
  void close() { last_ = look(); }
  std::int64_t nanoseconds(std::int64_t ticks) const {
    const auto all = static_cast<double>(last_.ticks - first_.ticks);
    const double speed = all > 0 ? static_cast<double>(last_.steady - first_.steady) / all : 1;
    return static_cast<std::int64_t>(static_cast<double>(ticks - first_.ticks) * speed);
  }

private:
  struct Both {
    std::int64_t ticks, steady;
  };
  Both look() const { return {ticks_.now(), Ticks::steady()}; }

  std::vector<Lane> lanes_;
  Ticks ticks_;
  Both first_{}, last_{};
};

// Nanoseconds that one of so many marks takes.
inline double mark_cost(std::int64_t marks) {
  Lane lane;
  lane.reserve(static_cast<std::size_t>(marks), {});
  const std::int64_t begin = Ticks::steady();
  for (std::int64_t i = 0; i < marks; ++i)
    lane.at(Stage::forward, static_cast<int>(i & 7))->computed();
  return static_cast<double>(Ticks::steady() - begin) / static_cast<double>(marks);
}

} // namespace wholebatch
