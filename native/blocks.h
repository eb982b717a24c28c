// Which rows of each mini-batch this process has: its shards one behind the other, each cut into fixed blocks.
//
// A mini-batch may be cut into shards, and a process may hold some of them. What is summed over a mini-batch is summed
// over the blocks of a shard, and then over the shards, in order: so the result is the same bits for any number of
// processes. Blocks and their groups are a function of a shard's rows alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace wholebatch {

// Where the rows of a shard stand in a mini-batch.
struct Shard {
  std::int64_t row = 0, rows = 0;     // the first, among the rows of this process, and how many
  std::int64_t block = 0, blocks = 0; // its first block, and how many
  std::int64_t group = 0, groups = 0; // its first group of blocks, and how many
  std::int64_t place = 0;             // of its first row in the whole mini-batch
};

// The blocks of one mini-batch. 128 rows of a layer's input stay in the second-level cache while they are multiplied;
// blocks of nearly equal size leave no short last one.
class Blocks {
public:
  static constexpr std::int64_t most = 128;
  std::int64_t rows = 0, count = 0, groups = 0;
  bool grouped = false; // some shard has several groups

  Blocks(const Shard *shards, int own) : shards_(shards) {
    for (int s = 0; s < own; ++s) {
      rows += shards[s].rows;
      count += shards[s].blocks;
      groups += shards[s].groups;
      grouped = grouped || shards[s].groups > 1;
    }
  }
  const Shard &shard(int s) const { return shards_[s]; }
  Rows at(std::int64_t block) const {
    const Shard &shard = shard_of(block);
    const std::int64_t within = block - shard.block, begin = shard.rows * within / shard.blocks,
                       end = shard.rows * (within + 1) / shard.blocks;
    return {shard.row + begin, static_cast<int>(end - begin), shard.place + begin};
  }
  // The first block of a group; of the one behind the last, the number of blocks.
  std::int64_t group_begin(std::int64_t group) const {
    if (group >= groups)
      return count;
    const Shard *shard = shards_;
    while (group >= shard->group + shard->groups)
      ++shard;
    return shard->block + shard->blocks * (group - shard->group) / shard->groups;
  }
  std::int64_t group_of(std::int64_t block) const {
    const Shard &shard = shard_of(block);
    return shard.group + ((block - shard.block + 1) * shard.groups - 1) / shard.blocks;
  }

  const Shard &shard_of(std::int64_t block) const {
    const Shard *shard = shards_;
    while (block >= shard->block + shard->blocks)
      ++shard;
    return *shard;
  }

private:
  const Shard *shards_;
};

// The shards of this process in every mini-batch of an epoch.
class Layout {
public:
  std::int64_t most_rows = 0, most_blocks = 0, most_groups = 0; // of a mini-batch; groups only where there are several
  std::int64_t most_single_blocks = 0;                          // of one without groups

  // counts: (steps, shards) rows of every shard, of which [first, first + own) are here; null: there is one, and
  // `offsets` (steps + 1) tells its rows. groups_of(blocks): how many groups a shard of so many blocks has.
  template <class Groups>
  void lay_out(std::int64_t steps, const std::int64_t *offsets, const std::int64_t *counts, int shards, int first,
               int own, Groups groups_of) {
    own_ = own;
    most_rows = most_blocks = most_groups = most_single_blocks = 0;
    shards_.clear();
    for (std::int64_t step = 0; step < steps; ++step) {
      std::int64_t place = 0;
      Shard at;
      for (int s = 0; s < first + own; ++s) {
        const std::int64_t rows = counts ? counts[step * shards + s] : offsets[step + 1] - offsets[step];
        if (s >= first) {
          at.rows = rows;
          at.place = place;
          at.blocks = (rows + Blocks::most - 1) / Blocks::most;
          at.groups = rows > 0 ? groups_of(at.blocks) : 0;
          shards_.push_back(at);
          at.row += at.rows;
          at.block += at.blocks;
          at.group += at.groups;
        }
        place += rows;
      }
      const Blocks blocks = of(step);
      most_rows = std::max(most_rows, blocks.rows);
      most_blocks = std::max(most_blocks, blocks.count);
      if (blocks.grouped)
        most_groups = std::max(most_groups, blocks.groups);
      else
        most_single_blocks = std::max(most_single_blocks, blocks.count);
    }
  }
  Blocks of(std::int64_t step) const { return {shards_.data() + step * own_, own_}; }

private:
  int own_ = 1;
  std::vector<Shard> shards_;
};

} // namespace wholebatch
