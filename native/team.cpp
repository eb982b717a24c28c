#include "team.h"

#include <sched.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

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

Team::Team(int size) : size_(size), process_(getpid()) {
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
    (*job_)(worker);
    meet(worker);
  }
}

void Team::run(const std::function<void(int)> &job) {
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
    if (worker == 0)
      waited_ += waited;
  }
  return stop_published_;
}

} // namespace wholebatch
