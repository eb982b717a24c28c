// How the worker that called the engine tells other processes what its shards have found out, and hears of theirs.
#pragma once

#include <cstdint>

namespace wholebatch {

// Called by one thread, begin and finish in turn. Any of them may throw: the epoch ends with what was thrown.
class Exchange {
public:
  // Which meeting: of a layer forward or backward, of the whole step, of the first layer's inputs.
  enum class At { forward, backward, step, inputs };

  virtual ~Exchange() = default;
  // Posts `width` numbers, which stay where they are until finish().
  virtual void begin(At at, int layer, const double *own, std::int64_t width) = 0;
  // Waits for everyone's: (ranks, 1 + width), of which the first column is not used. Valid until the next begin().
  virtual const double *finish() = 0;

  // Where ranks do not see each other's parts of a weight gradient: these sums them over all shards, in order.
  virtual void send_parts(int) {}  // this process's of a layer are complete
  virtual void await_parts(int) {} // a layer's sums are there when it returns
};

} // namespace wholebatch
