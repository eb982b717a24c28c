// Ranks as threads on one mapping, so that ThreadSanitizer sees both sides of what processes do to each other.
#include <cstdio>
#include <thread>

#include "mailbox.h"

namespace wholebatch {

namespace {

constexpr int ranks = 3, meetings = 400, longer = 100; // rank 0 has so many meetings fewer than the others
constexpr std::int64_t widths[] = {1, 64, Mailbox::slot_capacity - 1, 2 * Mailbox::slot_capacity + 3};

float element(int rank, int meeting, std::int64_t i) { return static_cast<float>(rank + 10 * meeting + i % 7); }

// Whether every row is what that rank brought, zeros for rank 0 once it stands by.
bool live(Mailbox &box, int rank) {
  bool right = true;
  std::vector<float> first, second;
  std::vector<double> out;
  for (int meeting = 0; meeting < meetings - (rank == 0 ? longer : 0); ++meeting) {
    const std::int64_t width = widths[meeting % 4];
    first.resize(static_cast<std::size_t>(width));
    second.resize(static_cast<std::size_t>(width));
    for (std::int64_t i = 0; i < width; ++i) {
      first[static_cast<std::size_t>(i)] = element(rank, meeting, i);
      second[static_cast<std::size_t>(i)] = -first[static_cast<std::size_t>(i)];
    }
    out.assign(static_cast<std::size_t>(ranks * (1 + 2 * width)), -1);
    Mailbox::Header header{};
    header[0] = static_cast<std::uint64_t>(meeting);
    auto status = box.meet(header, rank + 1, {{first.data(), second.data()}, {width, width}, false}, out.data(), 0.01);
    while (status == Mailbox::Status::waiting)
      status = box.wait(0.01);
    right = right && status == Mailbox::Status::met;
    for (int other = 0; other < ranks; ++other) {
      const double *row = out.data() + other * (1 + 2 * width);
      const bool idle = other == 0 && meeting >= meetings - longer;
      right = right && row[0] == (idle ? 0 : other + 1);
      for (std::int64_t i = 0; i < width; ++i) {
        const double expected = idle ? 0 : element(other, meeting, i);
        right = right && row[1 + i] == expected && row[1 + width + i] == -expected;
      }
    }
  }
  auto status = Mailbox::Status::met;
  while (status != Mailbox::Status::all_stand_by)
    status = status == Mailbox::Status::met ? box.stand_by(0.01) : box.wait(0.01);
  return right;
}

} // namespace

bool mailbox_selftest() {
  Mailbox maker(1, ranks, 0);
  Mailbox second(maker, 1), third(maker, 2);
  Mailbox *boxes[ranks] = {&maker, &second, &third};
  bool right[ranks] = {};
  std::atomic<bool> done{false};
  std::thread onlooker([&] { // looks at everyone's position, as a rank in doubt does
    while (!done.load())
      for (int rank = 0; rank < ranks; ++rank)
        maker.position(rank);
  });
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank)
    threads.emplace_back([&, rank] { right[rank] = live(*boxes[rank], rank); });
  for (auto &thread : threads)
    thread.join();
  done.store(true);
  onlooker.join();
  const bool all = right[0] && right[1] && right[2];
  std::printf("mailbox: %d meetings of %d ranks%s\n", meetings, ranks, all ? "" : ": wrong vectors");
  return all;
}

} // namespace wholebatch
