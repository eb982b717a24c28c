// What this machine can do at most, measured: float32 multiply-adds, and memory traffic. Against these the engine's
// times are held.
#pragma once

#include <cstdint>

namespace wholebatch {

// The best of so many bursts of about `seconds` each: operations per second on `threads` threads together, two for each
// multiply-add, in the instruction set in use.
double fma_peak(int threads, int bursts, double seconds);

// The best of so many sweeps of a = b + s * c over arrays of `count` float32 each: bytes per second, 12 for an element.
// What the processor reads of a before it writes it (write-allocate) is not counted, as in McCalpin's STREAM.
double memory_bandwidth(int threads, int sweeps, std::int64_t count);

} // namespace wholebatch
