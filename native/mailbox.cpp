#include "mailbox.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <system_error>

#include "relax.h"

namespace wholebatch {

namespace {

// As native/team.cpp: spinning longer makes hypervisors take the core away, and where a yield comes back late because
// another process held this core, parking (which is woken ahead of others) is better. One that comes back late because
// the hypervisor held it does not count: parking takes tens of microseconds, and would for the next thousand waits.
constexpr int spins = 64;
constexpr int yields = 2000; // about a millisecond on a free core
constexpr std::int64_t late = 50'000;
// Parked waits before the core is tried again: few at first, for the system's own threads displace anyone now and then,
// and twice as many each time that it is crowded still.
constexpr int least_parked = 16, most_parked = 1024;

std::int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// How often the system has given this thread's core to another while it could have gone on.
long times_displaced() {
  rusage used{};
  getrusage(RUSAGE_THREAD, &used);
  return used.ru_nivcsw;
}

[[noreturn]] void fail(const char *what) { throw std::system_error(errno, std::generic_category(), what); }

// Rounds are counted modulo 2^32.
bool reached(std::uint32_t posted, std::uint32_t round) { return static_cast<std::int32_t>(posted - round) >= 0; }

} // namespace

Mailbox::Mailbox(std::uint64_t cookie, int ranks, int rank) : rank_(rank), ranks_(ranks), process_(getpid()) {
  descriptor_ = memfd_create("wholebatch", MFD_CLOEXEC);
  if (descriptor_ < 0)
    fail("memfd_create");
  try {
    map(ranks);
  } catch (...) {
    seal();
    throw;
  }
  static_cast<Front *>(memory_)->cookie.store(cookie, std::memory_order_release);
  set_doing(Doing::outside);
}

Mailbox::Mailbox(const std::string &path, std::uint64_t cookie, int ranks, int rank)
    : rank_(rank), ranks_(ranks), process_(getpid()) {
  descriptor_ = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor_ < 0)
    fail(("open " + path).c_str());
  struct stat status{};
  const bool same_size = fstat(descriptor_, &status) == 0 && status.st_size == static_cast<off_t>(size_for(ranks));
  try {
    if (!same_size) // another version of this library, or another file
      throw std::runtime_error(path + " is not the group's memory: it has another size");
    map(ranks);
    if (static_cast<Front *>(memory_)->cookie.load(std::memory_order_acquire) != cookie)
      throw std::runtime_error(path + " is not the group's memory: it has another cookie");
  } catch (...) {
    if (memory_)
      munmap(memory_, bytes_);
    seal();
    throw;
  }
  seal();
  set_doing(Doing::outside);
}

Mailbox::Mailbox(const Mailbox &maker, int rank)
    : rank_(rank), ranks_(maker.ranks_), memory_(maker.memory_), owned_(false), bytes_(maker.bytes_),
      process_(maker.process_) {
  set_doing(Doing::outside);
}

std::size_t Mailbox::size_for(int ranks) { return alignof(Place) + sizeof(Place) * static_cast<std::size_t>(ranks); }

void Mailbox::map(int ranks) {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);
  bytes_ = size_for(ranks);
  // Now, where it can fail, and not at the first touch, where the process would be killed. Fresh memory is zeros.
  if (const int error = posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes_)); error != 0) {
    errno = error;
    fail("posix_fallocate");
  }
  void *memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_, 0);
  if (memory == MAP_FAILED)
    fail("mmap");
  memory_ = memory;
}

Mailbox::~Mailbox() {
  if (process_ == getpid()) { // a child that was forked has the memory, but is not the rank
    const auto doing = static_cast<Doing>(place(rank_).doing.load(std::memory_order_relaxed));
    if (doing == Doing::outside || doing == Doing::meeting || doing == Doing::standing_by)
      set_doing(Doing::ended);
  }
  if (owned_)
    munmap(memory_, bytes_);
  seal();
}

void Mailbox::seal() {
  if (descriptor_ >= 0)
    close(descriptor_);
  descriptor_ = -1;
}

double *Mailbox::room(std::int64_t width) {
  const auto needed = static_cast<std::size_t>(ranks_ * width);
  if (room_.size() < needed)
    room_.resize(needed);
  return room_.data();
}

Mailbox::Place &Mailbox::place(int rank) const {
  return *reinterpret_cast<Place *>(static_cast<char *>(memory_) + alignof(Place) +
                                    sizeof(Place) * static_cast<std::size_t>(rank));
}

void Mailbox::set_doing(Doing doing) {
  Place &own = place(rank_);
  own.since.store(now(), std::memory_order_relaxed);
  own.doing.store(static_cast<std::uint32_t>(doing), std::memory_order_release);
}

void Mailbox::mark(Doing doing, const std::string &text) {
  Place &own = place(rank_);
  Text bytes{};
  std::memcpy(bytes.data(), text.data(), std::min(text.size(), bytes.size() - 1));
  for (std::size_t i = 0; i < text_words; ++i) {
    std::uint64_t word;
    std::memcpy(&word, bytes.data() + 8 * i, 8);
    own.text[i].store(word, std::memory_order_relaxed);
  }
  set_doing(doing);
}

Mailbox::Position Mailbox::position(int rank) const {
  Place &other = place(rank);
  Position position{};
  position.doing = static_cast<Doing>(other.doing.load(std::memory_order_acquire));
  position.seconds = static_cast<double>(now() - other.since.load(std::memory_order_relaxed)) * 1e-9;
  // The last slot it published. Should it go on meanwhile, the header is that of a later meeting, or mixed: a rank that
  // goes on so fast is not the one that the diagnosis is about.
  if (const std::uint32_t posted = other.posted.load(std::memory_order_acquire); posted > 0) {
    const Slot &slot = other.slots[posted % 2];
    position.number = slot.number.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < header_words; ++i)
      position.header[i] = slot.header[i].load(std::memory_order_relaxed);
  }
  Text bytes{};
  for (std::size_t i = 0; i < text_words; ++i) {
    const std::uint64_t word = other.text[i].load(std::memory_order_relaxed);
    std::memcpy(bytes.data() + 8 * i, &word, 8);
  }
  position.text = std::string(bytes.data(), strnlen(bytes.data(), bytes.size()));
  return position;
}

std::vector<int> Mailbox::missing() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < ranks_; ++rank)
    if (!reached(place(rank).posted.load(std::memory_order_acquire), round_))
      ranks.push_back(rank);
  return ranks;
}

void Mailbox::begin(const Header &header, double count, const Vectors &vectors, double *out) {
  header_ = header;
  ++number_;
  count_ = count;
  vectors_ = vectors;
  out_ = out;
  width_ = vectors.elements[0] + vectors.elements[1];
  done_ = 0;
  standing_by_ = false;
  set_doing(Doing::meeting);
  post();
}

Mailbox::Status Mailbox::meet(const Header &header, double count, const Vectors &vectors, double *out, double seconds) {
  begin(header, count, vectors, out);
  return wait(seconds);
}

Mailbox::Status Mailbox::stand_by(double seconds) {
  if (!standing_by_) {
    standing_by_ = true;
    set_doing(Doing::standing_by);
  }
  // The name of its last own meeting stays in the slot: that is where it stands.
  width_ = done_ = 0;
  post();
  return wait(seconds);
}

void Mailbox::post() {
  Place &own = place(rank_);
  Slot &slot = own.slots[++round_ % 2];
  for (std::size_t i = 0; i < header_words; ++i)
    slot.header[i].store(header_[i], std::memory_order_relaxed);
  slot.number.store(number_, std::memory_order_relaxed);
  slot.stands_by.store(standing_by_, std::memory_order_relaxed);
  slot.count = count_;
  // The payload's elements [done, done + capacity), which may lie in both vectors.
  std::int64_t begin = 0;
  const std::int64_t end = std::min(width_, done_ + static_cast<std::int64_t>(slot_capacity));
  for (int v = 0; v < 2; ++v) {
    const std::int64_t from = std::max(begin, done_), to = std::min(begin + vectors_.elements[v], end);
    const std::int64_t count = standing_by_ ? 0 : to - from;
    double *into = slot.payload + (from - done_);
    if (count > 0 && vectors_.wide)
      std::copy_n(static_cast<const double *>(vectors_.data[v]) + (from - begin), count, into);
    else if (count > 0)
      std::copy_n(static_cast<const float *>(vectors_.data[v]) + (from - begin), count, into);
    begin += vectors_.elements[v];
  }
  next_ = 0;
  // Sequentially consistent, as in wait_for: either the waiter sees the round, or this sees the waiter.
  own.posted.store(round_);
  if (own.waiters.load() > 0)
    syscall(SYS_futex, &own.posted, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

Mailbox::Status Mailbox::wait(double seconds) {
  const std::int64_t deadline = now() + static_cast<std::int64_t>(seconds * 1e9);
  for (;;) {
    for (; next_ < ranks_; ++next_)
      if (next_ != rank_ && !wait_for(place(next_), deadline))
        return Status::waiting;
    if (standing_by_) {
      for (int rank = 0; rank < ranks_; ++rank) {
        const Slot &slot = place(rank).slots[round_ % 2];
        if (slot.stands_by.load(std::memory_order_relaxed))
          continue;
        number_ = slot.number.load(std::memory_order_relaxed);
        return Status::met;
      }
      set_doing(Doing::outside);
      return Status::all_stand_by;
    }
    if (!agree())
      return Status::disagreed;
    collect();
    if (done_ == width_) {
      set_doing(Doing::outside);
      return Status::met;
    }
    post();
  }
}

bool Mailbox::wait_for(Place &other, std::int64_t deadline) {
  const auto there = [&] { return reached(other.posted.load(std::memory_order_acquire), round_); };
  for (int i = 0; i < spins; ++i) {
    if (there())
      return true;
    relax();
  }
  if (crowded_ > 0)
    --crowded_;
  const long displaced = crowded_ == 0 ? times_displaced() : 0;
  std::int64_t before = now();
  for (int i = 0; crowded_ == 0 && i < yields; ++i) {
    if (there()) {
      if (i > 0) // others would have had the core by now
        patience_ = std::max(least_parked, patience_ / 2);
      return true;
    }
    sched_yield();
    const std::int64_t after = now();
    if (after - before > late && times_displaced() != displaced) {
      crowded_ = patience_ = std::clamp(2 * patience_, least_parked, most_parked);
      break;
    }
    before = after;
  }
  other.waiters.fetch_add(1);
  bool found = false;
  for (;;) {
    const std::uint32_t seen = other.posted.load();
    found = reached(seen, round_);
    const std::int64_t left = deadline - now();
    if (found || left <= 0)
      break;
    const timespec limit{left / 1'000'000'000, left % 1'000'000'000};
    // Also returns early, for a signal: then the caller is not kept from it for long, the deadline is near.
    syscall(SYS_futex, &other.posted, FUTEX_WAIT, seen, &limit, nullptr, 0);
  }
  other.waiters.fetch_sub(1);
  return found;
}

bool Mailbox::agree() const {
  for (int rank = 0; rank < ranks_; ++rank) {
    const Slot &slot = place(rank).slots[round_ % 2];
    if (slot.stands_by.load(std::memory_order_relaxed))
      continue;
    for (std::size_t i = 0; i < header_words; ++i)
      if (slot.header[i].load(std::memory_order_relaxed) != header_[i])
        return false;
  }
  return true;
}

void Mailbox::collect() {
  const std::int64_t count = std::min(width_ - done_, static_cast<std::int64_t>(slot_capacity));
  for (int rank = 0; rank < ranks_; ++rank) {
    const Slot &slot = place(rank).slots[round_ % 2];
    double *row = out_ + rank * (1 + width_);
    if (slot.stands_by.load(std::memory_order_relaxed)) {
      row[0] = 0;
      std::fill_n(row + 1 + done_, count, 0.0);
    } else {
      row[0] = slot.count;
      std::copy_n(slot.payload, count, row + 1 + done_);
    }
  }
  done_ += count;
}

} // namespace wholebatch
