// Units of work on torch's own threads, so that two pools do not fight for the cores. torch is no part of the build:
// its stable functions (from 2.10 on) are handed over at run time. Without them everything runs on the calling thread.
#pragma once

#include <cstdint>

namespace wholebatch {

using Range = void (*)(std::int64_t begin, std::int64_t end, void *context);
using ParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain, Range, void *context);
using CountThreads = std::int32_t (*)(std::uint32_t *);

// Both may be null. To be called before the first work.
void use_threads(ParallelFor, CountThreads);

// How many threads there are now; 1 without torch's.
std::int64_t thread_count();

// Runs [0, count) in ranges, at least `grain` units in each. range must not throw, and units must not depend on each
// other. Returns when all are done.
void run_ranges(std::int64_t count, std::int64_t grain, Range range, void *context);

// The same with a function object: work(begin, end).
template <class Work> void parallel(std::int64_t count, std::int64_t grain, const Work &work) {
  run_ranges(
      count, grain,
      [](std::int64_t begin, std::int64_t end, void *context) { (*static_cast<const Work *>(context))(begin, end); },
      const_cast<void *>(static_cast<const void *>(&work)));
}

} // namespace wholebatch
