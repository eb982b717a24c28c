// A team of threads that stays alive between steps, and the barrier at which they meet.
//
// A step of a small net takes 10 microseconds, less than waking a parked thread does. So whoever waits spins first (the
// others are usually nanoseconds away), then yields. Where a yield comes back late, another process holds this core:
// then parking is better, for a parked thread is woken ahead of it, while one that yields waits for its turn.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "timeline.h"

namespace wholebatch {

class Team {
public:
  explicit Team(int size);
  ~Team();
  Team(const Team &) = delete;
  Team &operator=(const Team &) = delete;

  // Whether its threads are in this process: a child that was forked has the memory, but not the threads.
  bool is_here() const;

  // Runs job(worker) on every worker, worker 0 on the calling thread, and returns when all are done.
  void run(const std::function<void(int)> &job);

  // The barrier. Every worker of a running job calls it equally often. Returns whether a stop was asked for: the last
  // to arrive reads the wish and publishes it with the release, so all workers get the same answer at the same meeting.
  // lane: where to write how it was waited, or null.
  bool meet(int worker, Lane *lane = nullptr);

  // Asks every worker to leave at the next meeting.
  void ask_to_stop() { stop_asked_.store(true, std::memory_order_relaxed); }
  // Nanoseconds that worker 0 was parked or put aside in the last run: many where free cores are fewer than workers.
  std::int64_t waited() const { return waited_; }

  bool stop_asked() const { return stop_asked_.load(std::memory_order_relaxed); }

private:
  void live(int worker);
  void find_place(int worker); // a core of its own, if there is one
  void park(const std::atomic<std::uint32_t> &word, std::uint32_t old);
  void publish(std::atomic<std::uint32_t> &word, std::uint32_t value); // and wakes whoever is parked on it
  // Returns when `word` differs from `old`, with the nanoseconds that it was parked or put aside.
  std::int64_t wait_while_equal(const std::atomic<std::uint32_t> &word, std::uint32_t old, Lane *lane = nullptr);

  // A worker's last move. The next one waits, for each takes microseconds; twice as long each time that a core was
  // crowded after a move: where other processes have the cores, staying beside whoever wakes it is better.
  struct Move {
    static constexpr auto shortest = std::chrono::milliseconds(10), longest = std::chrono::milliseconds(10000);
    std::chrono::steady_clock::time_point at{};
    std::chrono::milliseconds settled = shortest;
    int times_crowded = 0; // until then
  };

  const int size_;
  const long process_;
  std::vector<std::thread> threads_;
  std::vector<Move> moves_;                   // each worker's own
  std::unique_ptr<std::atomic<int>[]> cores_; // on which each worker was last seen
  const std::function<void(int)> *job_ = nullptr;
  bool ending_ = false;
  std::int64_t waited_ = 0;
  bool stop_published_ = false;
  std::atomic<bool> stop_asked_{false};
  std::atomic<int> parked_{0};
  std::atomic<int> times_crowded_{0};
  std::atomic<int> crowded_{0}; // for so many more waits: park instead of yielding
  alignas(64) std::atomic<std::uint32_t> started_{0};
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> meeting_{0};
};

} // namespace wholebatch
