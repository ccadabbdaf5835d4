// Functions of one pixel that the kernels call and that a CPU can call too: so the tests without a GPU run the same source.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define AGVAS_BOTH __host__ __device__ inline
#else
#define AGVAS_BOTH inline
#endif
