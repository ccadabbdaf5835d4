#include <cstring>
#include <initializer_list>

#include "row_kernels.h"

namespace agvas {

namespace baseline {
extern const RowKernels kernels;
}
#ifdef AGVAS_X86
namespace avx2 {
extern const RowKernels kernels;
}
namespace avx512 {
extern const RowKernels kernels;
}
#endif

const RowKernels* row_kernels(const char* name) {
#ifdef AGVAS_X86
  if (std::strcmp(name, "avx512") == 0) {
    const bool there = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq");
    return there ? &avx512::kernels : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) return __builtin_cpu_supports("avx2") ? &avx2::kernels : nullptr;
#endif
  return std::strcmp(name, "baseline") == 0 ? &baseline::kernels : nullptr;
}

namespace {

const RowKernels* best() {
  for (const char* name : {"avx512", "avx2"})
    if (const RowKernels* found = row_kernels(name)) return found;
  return &baseline::kernels;
}

const RowKernels*& chosen() {
  static const RowKernels* kernels = best();
  return kernels;
}

}  // namespace

const RowKernels& row_kernels() { return *chosen(); }

bool use_row_kernels(const char* name) {
  const RowKernels* found = row_kernels(name);
  if (found != nullptr) chosen() = found;
  return found != nullptr;
}

}  // namespace agvas
