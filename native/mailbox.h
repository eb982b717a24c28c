// Shared memory in which the ranks of one host leave each other their vectors: a meeting takes microseconds, where a
// collective over sockets takes hundreds.
//
//   rank 0: [posted | doing, since, text | slot 0 | slot 1]   rank 1: [...]   ...
//
// In round k every rank fills its slot k % 2, then publishes `posted = k`, waits until all have published k, and reads
// their slots. Two slots are enough: a rank writes k + 2 only after it saw everyone publish k + 1, which each of them
// does after it has read round k. A payload longer than a slot takes several rounds.
//
// Whatever a rank last posted, and what it is doing, can always be read by the others, also when it has died: that is
// what a diagnosis is made of.
//
// The memory has no name in any file system (memfd): the system frees it with its last user, however that one ends. It
// is opened through /proc/<pid>/fd, which also shows that its maker is a process of this host that can be seen from
// here.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace wholebatch {

class Mailbox {
public:
  static constexpr std::size_t header_words = 19, text_words = 64, slot_capacity = 4096;
  using Header = std::array<std::uint64_t, header_words>;
  using Text = std::array<char, text_words * 8>;

  enum class Doing : std::uint32_t { absent, outside, meeting, standing_by, raised, ended, gave_up };
  enum class Status { met, waiting, disagreed, all_stand_by };

  // Vectors of one dtype, one behind the other in the payload.
  struct Vectors {
    const void *data[2];
    std::int64_t elements[2];
    bool wide; // double, or else float
  };
  struct Position {
    Doing doing;
    std::uint64_t number; // of the last meeting it posted; 0: none
    double seconds;       // for how long it has been doing that
    Header header;        // of that meeting
    std::string text;     // what it raised
  };

  // Throws std::runtime_error, with the system's reason, where the memory cannot be made, opened or mapped, or where
  // what lies at the path is another memory than the one with this cookie.
  Mailbox(std::uint64_t cookie, int ranks, int rank);                          // makes it
  Mailbox(const std::string &path, std::uint64_t cookie, int ranks, int rank); // opens what another rank made
  Mailbox(const Mailbox &maker, int rank); // another rank in the same process and mapping: for the self-test
  ~Mailbox();
  Mailbox(const Mailbox &) = delete;
  Mailbox &operator=(const Mailbox &) = delete;

  int ranks() const { return ranks_; }
  // Memory for a row of `width` doubles from each rank, the same again and again. Valid until more is asked for.
  double *room(std::int64_t width);
  int descriptor() const { return descriptor_; } // -1 after seal()
  void seal();                                   // all have it open: gives the descriptor back

  // Posts and waits. `out` takes a row of doubles for each rank: its count, then its vectors; zeros for a rank that
  // stands by. After `waiting`, call wait() with the same out until it says otherwise; the vectors stay where they are.
  Status meet(const Header &header, double count, const Vectors &vectors, double *out, double seconds);
  // Posts and goes on; wait() follows.
  void begin(const Header &header, double count, const Vectors &vectors, double *out);
  // One round of a rank that has no examples left: posts that, and waits for the others to post theirs.
  Status stand_by(double seconds);
  Status wait(double seconds);

  // For a diagnosis.
  void mark(Doing doing, const std::string &text);
  Position position(int rank) const;
  std::vector<int> missing() const; // the ranks that have not posted the round waited for

private:
  struct Slot {
    std::array<std::atomic<std::uint64_t>, header_words> header;
    std::atomic<std::uint64_t> number;
    std::atomic<std::uint32_t> stands_by;
    double count;
    double payload[slot_capacity];
  };
  struct alignas(128) Place {
    std::atomic<std::uint32_t> posted;  // the last round; also the word to park on
    std::atomic<std::uint32_t> waiters; // parked on it
    alignas(64) std::atomic<std::uint32_t> doing;
    std::atomic<std::int64_t> since; // nanoseconds of the system's steady clock, which all processes share
    std::array<std::atomic<std::uint64_t>, text_words> text;
    alignas(64) Slot slots[2];
  };
  struct Front {
    std::atomic<std::uint64_t> cookie;
  };

  static std::size_t size_for(int ranks);
  void map(int ranks);
  Place &place(int rank) const;
  void set_doing(Doing doing);
  void post();
  bool wait_for(Place &other, std::int64_t deadline);
  bool agree() const;
  void collect();

  int descriptor_ = -1;
  int rank_, ranks_;
  void *memory_ = nullptr;
  bool owned_ = true;
  std::size_t bytes_ = 0;
  long process_;

  // The meeting under way.
  Header header_{};
  std::uint64_t number_ = 0; // of the meeting under way, or the last one; a rank that stands by counts the others'
  double count_ = 0;
  Vectors vectors_{};
  double *out_ = nullptr;
  std::int64_t width_ = 0, done_ = 0; // payload elements: all, and those of finished rounds
  std::uint32_t round_ = 0;
  int next_ = 0; // the rank to wait for
  bool standing_by_ = false;
  std::vector<double> room_;
  int crowded_ = 0;  // for so many more waits: park instead of yielding
  int patience_ = 0; // how many there were the last time
};

} // namespace wholebatch
