// Which build of the kernels runs: the best that the processor has, or the one that WHOLEBATCH_INSTRUCTION_SET names.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "batch_norm_kernels.h"
#include "kernels.h"

namespace wholebatch {

enum class InstructionSet { portable, avx2, avx512 };

inline bool has(InstructionSet set) {
#ifdef WB_BUILT_avx512
  if (set == InstructionSet::avx512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#endif
#ifdef WB_BUILT_avx2
  if (set == InstructionSet::avx2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return set == InstructionSet::portable;
}

inline const char *name_of(InstructionSet set) {
  return set == InstructionSet::avx512 ? "avx512" : set == InstructionSet::avx2 ? "avx2" : "portable";
}

inline InstructionSet instruction_set() {
  const char *wish = std::getenv("WHOLEBATCH_INSTRUCTION_SET");
  const bool open = wish == nullptr || *wish == '\0';
  std::string here;
  for (InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2, InstructionSet::portable}) {
    if (open ? has(set) : std::string(wish) == name_of(set) && has(set))
      return set;
    if (has(set))
      here += here.empty() ? name_of(set) : std::string(", ") + name_of(set);
  }
  throw std::invalid_argument("WHOLEBATCH_INSTRUCTION_SET is '" + std::string(wish) +
                              "'; known are avx512, avx2 and portable, and this processor has: " + here);
}

template <class T> const Kernels<T> &kernels() {
  const InstructionSet set = instruction_set();
#ifdef WB_BUILT_avx512
  if (set == InstructionSet::avx512)
    return kernels_avx512<T>();
#endif
#ifdef WB_BUILT_avx2
  if (set == InstructionSet::avx2)
    return kernels_avx2<T>();
#endif
  static_cast<void>(set);
  return kernels_portable<T>();
}

// The same for batch norm alone, which has no object that remembers the choice: made once per process.
template <class T> const BatchNormKernels<T> &choose_batch_norm_kernels() {
  const InstructionSet set = instruction_set();
#ifdef WB_BUILT_avx512
  if (set == InstructionSet::avx512)
    return batch_norm_kernels_avx512<T>();
#endif
#ifdef WB_BUILT_avx2
  if (set == InstructionSet::avx2)
    return batch_norm_kernels_avx2<T>();
#endif
  static_cast<void>(set);
  return batch_norm_kernels_portable<T>();
}

template <class T> const BatchNormKernels<T> &batch_norm_kernels() {
  static const BatchNormKernels<T> &chosen = choose_batch_norm_kernels<T>();
  return chosen;
}

} // namespace wholebatch
