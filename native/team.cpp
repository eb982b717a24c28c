#include "team.h"

#include <sched.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>

#include "relax.h"

namespace wholebatch {

namespace {

// docs/decisions.md has the measurements. Spinning longer makes hypervisors take the core away; parking earlier makes
// them halt it, and waking it takes longer than a step of a small net.
constexpr int spins = 64;
constexpr int yields = 5000; // one to two milliseconds on a free core
constexpr auto late = std::chrono::microseconds(50);
constexpr int crowded_waits = 1000; // then the core is tried again: one lost time slice in so many waits

// How often this thread left its core to another. A yield also comes back late where a hypervisor took the core, or
// moved it: then nobody waits for it here, and parking would cost a wake-up for nothing.
long times_switched() {
#ifdef __linux__
  rusage usage;
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw + usage.ru_nivcsw : 0;
#else
  static thread_local long unknown = 0;
  return ++unknown;
#endif
}

int core_of_this_thread() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to a core that is not among those `taken`, if it may run on one; it stays free to be moved on.
void leave_for_another_core([[maybe_unused]] const std::atomic<int> *taken, [[maybe_unused]] int count) {
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return;
  cpu_set_t free = allowed;
  for (int i = 0; i < count; ++i)
    if (const int core = taken[i].load(std::memory_order_relaxed); core >= 0 && core < CPU_SETSIZE)
      CPU_CLR(core, &free);
  if (CPU_COUNT(&free) > 0 && sched_setaffinity(0, sizeof free, &free) == 0)
    sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

} // namespace

std::int64_t Team::wait_while_equal(const std::atomic<std::uint32_t> &word, std::uint32_t old, Lane *lane) {
  using Clock = std::chrono::steady_clock;
  const auto mark = [lane](Doing doing) {
    if (lane)
      lane->mark(doing);
  };
  for (int i = 0; i < spins; ++i) {
    if (word.load(std::memory_order_acquire) != old) {
      mark(Doing::spinning);
      return 0;
    }
    relax();
  }
  mark(Doing::spinning);
  auto before = Clock::now();
  const int crowded = crowded_.load(std::memory_order_relaxed);
  if (crowded > 0)
    crowded_.store(crowded - 1, std::memory_order_relaxed);
  const long switched = crowded == 0 ? times_switched() : 0;
  for (int i = 0; crowded == 0 && i < yields; ++i) {
    if (word.load(std::memory_order_acquire) != old) {
      mark(Doing::yielding);
      return 0;
    }
    sched_yield();
    const auto now = Clock::now();
    if (now - before > late && times_switched() != switched) {
      crowded_.store(crowded_waits, std::memory_order_relaxed);
      times_crowded_.fetch_add(1, std::memory_order_relaxed);
      break;
    }
    before = now;
  }
  if (crowded == 0)
    mark(Doing::yielding);
  park(word, old);
  mark(Doing::parked);
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - before).count();
}

// The standard library's wait yields a few times before it parks, which costs as many time slices among busy
// neighbours.
void Team::park(const std::atomic<std::uint32_t> &word, std::uint32_t old) {
  static_assert(sizeof(word) == 4);
  parked_.fetch_add(1); // before the system compares the word: publish() looks at it after it changed the word
  while (word.load() == old)
#ifdef __linux__
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
#else
    word.wait(old);
#endif
  parked_.fetch_sub(1);
}

void Team::publish(std::atomic<std::uint32_t> &word, std::uint32_t value) {
  word.store(value);
  if (parked_.load() > 0)
#ifdef __linux__
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    word.notify_all();
#endif
}

Team::Team(int size)
    : size_(size), process_(getpid()), moves_(size), cores_(std::make_unique<std::atomic<int>[]>(size)) {
  for (int worker = 0; worker < size_; ++worker)
    cores_[worker] = -1;
  for (int worker = 1; worker < size_; ++worker)
    threads_.emplace_back([this, worker] { live(worker); });
}

bool Team::is_here() const { return process_ == getpid(); }

Team::~Team() {
  if (!is_here()) {
    for (auto &thread : threads_)
      thread.detach();
    return;
  }
  ending_ = true;
  publish(started_, started_.load(std::memory_order_relaxed) + 1);
  for (auto &thread : threads_)
    thread.join();
}

void Team::live(int worker) {
  for (std::uint32_t seen = 0;; ++seen) {
    wait_while_equal(started_, seen);
    if (ending_)
      return;
    find_place(worker);
    (*job_)(worker);
    meet(worker);
  }
}

// Where a system takes idle cores of a virtual machine for busy ones, it wakes a worker on the core of whoever woke it:
// there they take turns for tens of milliseconds, and each takes the other for a busy neighbour.
void Team::find_place(int worker) {
  const int core = core_of_this_thread();
  cores_[worker].store(core, std::memory_order_relaxed);
  const auto is_here = [core](const std::atomic<int> &other) { return other.load(std::memory_order_relaxed) == core; };
  if (core < 0 || std::none_of(cores_.get(), cores_.get() + worker, is_here)) // the caller's own thread stays
    return;
  const auto now = std::chrono::steady_clock::now();
  Move &last = moves_[worker];
  if (now - last.at < last.settled)
    return;
  const int times = times_crowded_.load(std::memory_order_relaxed);
  last.settled = times != last.times_crowded ? std::min(2 * last.settled, Move::longest) : Move::shortest;
  last.at = now;
  last.times_crowded = times;
  leave_for_another_core(cores_.get(), size_);
  const int place = core_of_this_thread();
  cores_[worker].store(place, std::memory_order_relaxed);
  if (place != core)
    crowded_.store(0, std::memory_order_relaxed);
}

void Team::run(const std::function<void(int)> &job) {
  if (size_ > 1)
    find_place(0);
  stop_asked_.store(false, std::memory_order_relaxed);
  job_ = &job;
  publish(started_, started_.load(std::memory_order_relaxed) + 1);
  waited_ = 0;
  job(0);
  meet(0);
}

bool Team::meet(int worker, Lane *lane) {
  if (size_ == 1)
    return stop_asked();
  const std::uint32_t meeting = meeting_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(size_)) {
    arrived_.store(0, std::memory_order_relaxed);
    stop_published_ = stop_asked();
    publish(meeting_, meeting + 1);
    if (lane)
      lane->mark(Doing::waking);
  } else {
    const std::int64_t waited = wait_while_equal(meeting_, meeting, lane);
    if (waited > 0)
      find_place(worker);
    if (worker == 0)
      waited_ += waited;
  }
  return stop_published_;
}

} // namespace wholebatch
