// How a mini-batch is spread over shards and processes; see feedforward/spread.py for what a person chooses.
#pragma once

#include <cstdint>

#include "exchange.h"

namespace wholebatch {

template <class T> struct Spread {
  int shards = 1;                       // of the whole mini-batch
  int first = 0, own = 1;               // those of this process
  int near = 1;                         // how many of them are normalised together; all, the own, or in between
  bool late = false;                    // with the moments that the others had in the step before
  bool overlap = true;                  // work while an exchange is under way
  const std::int64_t *counts = nullptr; // (steps, shards) rows
  // (steps, shards, 3): sums of the rows' weights in the loss and in the moments, and the rows whose weight is not 0;
  // null: every row counts once.
  const double *weighings = nullptr;
  Exchange *whole = nullptr;  // among all ranks; null: one process has all shards
  Exchange *layers = nullptr; // among those that meet at layers; null: nobody does

  // Parts of the weight gradients: [round][shard][weight]. Where every rank sees them they are of all shards, and where
  // ranks do not meet at layers two rounds take turns. Else they are of the own shards, and `sums` takes what the
  // exchange makes of them. Null: the net has its own memory for them.
  T *parts = nullptr;
  T *sums = nullptr;
  bool alternates = false;
  std::int64_t round = 0; // of the first step, counted over all runs
};

} // namespace wholebatch
