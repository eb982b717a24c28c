// How the outputs of a layer lie side by side: in panels of two vectors, or of one where no second is left.
//
// A panel of weights is what a matrix product reads in order. Where workers share the outputs, each has whole panels of
// nearly as many vectors: of 100 outputs in vectors of 16 two workers have 48 and 52, and not 64 and 36.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace wholebatch {

struct Range {
  std::int64_t begin, end;
};

class Panels {
public:
  static constexpr int most = 2; // vectors of a panel

  Panels() = default;
  // unit: a worker's share is a multiple of so many vectors, but for the last one's. What does not go evenly into the
  // workers falls to the last, whose last vector may be mostly padding.
  Panels(int outputs, int width, int workers, int unit) : outputs_(outputs), width_(width), shares_{0} {
    const int vectors = (outputs + width - 1) / width, units = (vectors + unit - 1) / unit;
    for (int worker = 0, begin = 0; worker < workers; ++worker) {
      const int end = std::min(vectors, units * (worker + 1) / workers * unit);
      for (; begin < end; begin += std::min(most, end - begin))
        first_.push_back(begin * width);
      shares_.push_back(static_cast<std::int64_t>(first_.size()));
    }
    first_.push_back(vectors * width);
  }

  std::int64_t count() const { return shares_.back(); }
  Range all() const { return {0, count()}; }
  Range of(int worker) const { return {shares_[worker], shares_[worker + 1]}; }
  // A panel's first output; of the one behind the last, all outputs in whole vectors.
  std::int64_t first(std::int64_t panel) const { return first_[panel]; }
  // Outputs of a panel, in whole vectors.
  std::int64_t wide(std::int64_t panel) const { return first_[panel + 1] - first_[panel]; }
  int vectors(std::int64_t panel) const { return static_cast<int>(wide(panel)) / width_; }
  // And without padding.
  int columns(std::int64_t panel) const { return std::min(first_[panel + 1], outputs_) - first_[panel]; }
  std::int64_t of_output(int output) const {
    return std::upper_bound(first_.begin(), first_.end(), output) - first_.begin() - 1;
  }

private:
  int outputs_ = 0, width_ = 1;
  std::vector<int> first_;
  std::vector<std::int64_t> shares_{0}; // the first panel of each worker, and their number
};

} // namespace wholebatch
