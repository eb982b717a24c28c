#include "parallel.h"

#include <stdexcept>

namespace wholebatch {

namespace {
ParallelFor parallel_for = nullptr;
CountThreads count_threads = nullptr;
} // namespace

void use_threads(ParallelFor run, CountThreads count) {
  parallel_for = run;
  count_threads = count;
}

std::int64_t thread_count() {
  std::uint32_t count = 1;
  if (parallel_for == nullptr || count_threads == nullptr || count_threads(&count) != 0)
    return 1;
  return count;
}

void run_ranges(std::int64_t count, std::int64_t grain, Range range, void *context) {
  if (count <= 0)
    return;
  if (parallel_for == nullptr || count <= grain)
    range(0, count, context);
  else if (parallel_for(0, count, grain, range, context) != 0)
    throw std::runtime_error("torch_parallel_for failed");
}

} // namespace wholebatch
