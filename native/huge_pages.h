// Pages of 2 MiB for memory that was allocated by others: they are given on request only, on many systems.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace wholebatch {

// For the whole pages between the ends; does nothing where there are none, or where the system does not know of them.
inline void advise_huge_pages([[maybe_unused]] std::uintptr_t address, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t huge = std::uintptr_t{1} << 21;
  const std::uintptr_t begin = (address + huge - 1) / huge * huge, end = (address + bytes) / huge * huge;
  if (begin < end)
    madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

} // namespace wholebatch
